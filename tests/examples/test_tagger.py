"""The tagger that an example makes: the tags of its text, no name in both splits, and a whole run."""

import random
import re

import pandas as pd
import pytest
import tagger
from tiny import save_tiny, tiny_model

from optimum_kprune import Frontier, KPruner

pytestmark = pytest.mark.slow

SENTENCE = "The city of New York's mayor paid US$1.5 million on 3 May 1999, or 20% of it, to Ada Lovelace."
ENTITIES = {
    "NAME": [["new", "york"], ["ada", "lovelace"]],
    "MONEY": [["us", "$", "1.5", "million"]],
    "DATE": [["3", "may", "1999"]],
    "NUMBER": [["20"]],
}


def entities_in(row):
    """The words of every entity, by its kind."""
    found = {}
    for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
        prefix, _, kind = tag.partition("-")
        if prefix == "B":
            found.setdefault(kind, []).append([word])
        elif prefix == "I":
            found[kind][-1].append(word)
    return found


def test_entities_are_found_by_rules_and_words_are_in_lower_case():
    row = tagger.tagged(SENTENCE, {"the"})
    assert entities_in(row) == ENTITIES
    assert "".join(row["tokens"]) == SENTENCE.lower().replace(" ", "")


def test_a_first_word_is_a_name_unless_it_is_a_word_elsewhere():
    assert entities_in(tagger.tagged("Sparrow Lake is deep", {"sparrow"})) == {"NAME": [["lake"]]}
    assert entities_in(tagger.tagged("Ontario Lake is deep", {"sparrow"})) == {"NAME": [["ontario", "lake"]]}


def texts_about(names, count, seed):
    generator = random.Random(seed)
    words = ["the", "river", "of", "many", "boats", "was", "seen", "by"]
    return [
        f"By {generator.randint(1700, 1999)} {' '.join(generator.sample(words, 6))} {generator.choice(names)}. "
        f"Many paid ${generator.randint(2, 90)} in {generator.choice(names)}'s {' '.join(generator.sample(words, 4))}."
        for _ in range(count)
    ]


def test_no_name_to_evaluate_on_is_one_to_train_on():
    both = ["Ada", "Rome", "Oslo"]
    data = tagger.make_dataset(texts_about([*both, "Paris"], 60, 0), texts_about([*both, "Vienna"], 30, 1))
    names = data["train"].features["ner_tags"].feature.names
    found = {
        split: {
            " ".join(words)
            for row in rows
            for words in entities_in({**row, "ner_tags": [names[tag] for tag in row["ner_tags"]]}).get("NAME", [])
        }
        for split, rows in data.items()
    }
    assert found == {"train": {"paris"}, "validation": {"ada", "rome", "oslo", "vienna"}}


def test_a_tagger_is_trained_pruned_and_compared(tmp_path, capsys):
    encoder = save_tiny(tmp_path / "encoder", tiny_model(head="base model"))
    (tmp_path / "texts").mkdir()
    for split, names in (("train", ["Paris", "Bonn"]), ("validation", ["Vienna", "Linz"])):
        pd.DataFrame({"context": texts_about(names, 40, 0)}).to_parquet(tmp_path / "texts" / f"{split}.parquet")
    output, same = tmp_path / "output", tmp_path / "same"
    common = ["--dataset", str(tmp_path / "texts"), "--rates", "0.5", "--num_tokens", "400"]

    tagger.main(["--encoder", str(encoder), "--epochs", "1", "--draws", "2", *common, "--output_dir", str(output)])
    tagger.main(["--model", str(output / "model"), *common, "--output_dir", str(same)])

    assert re.search(r"Means and standard deviations over 2 draws", capsys.readouterr().out)
    joined, first = Frontier.load(output / "frontier.json"), Frontier.load(same / "frontier.json")
    assert joined.measure == "f1" and joined.dense.milliseconds and joined.points[0].flops < 0.5
    assert first.dense.figures == joined.dense.figures
    loaded = KPruner.from_pretrained(output / "model")
    assert loaded.evaluation_on(output / "data")(loaded.model) == first.dense.figures
