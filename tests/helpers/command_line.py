"""Arguments of `optimum-cli kprune`, and files for it."""

from datasets import Dataset
from tiny import ragged_samples, save_tiny, texts_of

from optimum_kprune import KPruneConfig

SAMPLES = ragged_samples(40)


def write_inputs(folder):
    """Writes a model, calibration data as txt and as csv, and settings."""
    save_tiny(folder / "model")
    texts = texts_of(SAMPLES)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    rows = [f"{index},{text},{index % 3}\n" for index, text in enumerate(texts)]
    (folder / "texts.csv").write_text("id,sentence,label\n" + "".join(rows))
    pairs = [f"{text},w1 w2\n" for text in texts]
    (folder / "ambiguous.csv").write_text("one,other\n" + "".join(pairs))
    KPruneConfig(compression_rate=0.8, ridge=0.5, num_tokens=150).save_pretrained(folder / "settings")
    return folder


def write_labelled(file):
    rows = [{"text": text, "label": index % 3} for index, text in enumerate(texts_of(SAMPLES))]
    Dataset.from_list(rows).to_csv(file)
    return file


def arguments_of(place, output, data="texts.txt", **options):
    defaults = {"model": place / "model", "dataset": place / data, "compression_rate": 0.5, "num_tokens": 200}
    given = {**options, **{name: value for name, value in defaults.items() if name not in options}}
    pairs = [(f"--{name}", str(value)) for name, value in given.items() if value is not None]
    return ["kprune", *(part for pair in pairs for part in pair), str(output)]
