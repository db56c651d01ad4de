"""From a `SentenceTransformer` to a smaller one: what is preserved, what stays, and what loads again."""

import copy
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    models,
)
from sentence_transformers.sentence_transformer.modules import LayerNorm, Router, StaticEmbedding
from tiny import HIDDEN, LAYERS, ragged_samples, same_state, save_tiny, texts_of, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from optimum.commands import optimum_cli
from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

TEXTS = texts_of(ragged_samples(24))
CONFIG = KPruneConfig(compression_rate=0.6, heldout_share=0)
PROMPTS = {"query": "w3 w4 ", "document": ""}


@pytest.fixture
def encoder(tmp_path):
    """A folder without a pipeline."""
    return str(save_tiny(tmp_path / "encoder", tiny_model(head="base model")))


def make_pipeline(encoder, pooling="mean", behind=(), **options):
    """A loaded pipeline: the encoder, its pooling and what follows."""
    modules = [models.Transformer(encoder), models.Pooling(HIDDEN, pooling), *behind]
    return SentenceTransformer(modules=modules, device="cpu", **options)


def prune(pipeline, config=CONFIG):
    pruner = KPruner.from_sentence_transformer(pipeline)
    pruner.prune(config, TEXTS)
    return pruner


PIPELINES = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "several poolings": {"pooling": ("cls", "mean")},
    "dense and norm": {"behind": lambda: (models.Dense(HIDDEN, 8), LayerNorm(8), models.Normalize())},
    "truncated": {"pooling": "mean", "truncate_dim": 8},
    "dot product": {"similarity_fn_name": "dot"},
}


def from_options(encoder, name):
    options = dict(PIPELINES[name])
    return make_pipeline(encoder, behind=options.pop("behind", tuple)(), **options)


# What is preserved


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_preserved_is_what_the_pipeline_gives(encoder, name):
    """The oracle is `encode`; of unit length only where the cosine compares."""
    pipeline = from_options(encoder, name).train()
    pruner = KPruner.from_sentence_transformer(pipeline)
    expected = pipeline.encode(TEXTS, normalize_embeddings=name != "dot product", convert_to_tensor=True)
    batch = pipeline.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = pruner.teacher.eval()(**batch)
    prediction = pruner.task.predict(outputs, pruner.teacher.config, batch["attention_mask"].bool())
    assert prediction.family == "gaussian" and prediction.weights.eq(1).all()
    torch.testing.assert_close(prediction.values[:, 0], expected)


def test_pooling_decides_what_is_kept(encoder):
    """Of the last block, the first token reads all heads' values, and other tokens do not matter to it."""
    kept = [prune(make_pipeline(encoder, pooling)).result.to_dict()["sublayers"] for pooling in ("mean", "cls")]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("name", PIPELINES)
def test_nothing_changes_at_rate_0(encoder, name):
    pipeline = from_options(encoder, name)
    pruner = prune(pipeline, KPruneConfig(compression_rate=0.0))
    np.testing.assert_allclose(pruner.sentence_transformer.encode(TEXTS), pipeline.encode(TEXTS), rtol=1e-3, atol=1e-4)


def test_texts_are_cut_where_the_pipeline_cuts_them(encoder):
    pipeline = make_pipeline(encoder)
    pipeline.max_seq_length = 5
    pruner = prune(pipeline)
    assert pruner.result.tokens == sum(min(5, len(text.split()) + 2) for text in TEXTS)
    assert pruner.sentence_transformer.max_seq_length == 5


# What comes out


def test_the_pipeline_stays_and_a_smaller_one_comes_out(encoder):
    pipeline = make_pipeline(encoder, "cls", [models.Dense(HIDDEN, 8), models.Normalize()], prompts=PROMPTS)
    before, embeddings = copy.deepcopy(pipeline), pipeline.encode(TEXTS)
    pruner = prune(pipeline)
    smaller = pruner.sentence_transformer
    assert smaller[0].auto_model is pruner.model
    assert [type(module) for module in smaller] == [type(module) for module in pipeline]
    assert smaller.prompts == PROMPTS
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, pipeline.parameters()))
    assert not np.array_equal(smaller.encode(TEXTS), embeddings)

    smaller[2].linear.weight.data.zero_()
    smaller.max_seq_length = 4
    smaller.prompts["query"] = ""
    assert same_state(pipeline, before) and pipeline.prompts == PROMPTS and pipeline._similarity_fn_name is None
    np.testing.assert_array_equal(pipeline.encode(TEXTS), embeddings)
    assert pruner.sentence_transformer.max_seq_length == pipeline.max_seq_length == 30


def test_every_pruner_of_a_sweep_has_its_pipeline(encoder):
    pipeline = make_pipeline(encoder)
    pruners = KPruner.from_sentence_transformer(pipeline).sweep([0.3, 0.6], KPruneConfig(), TEXTS)
    sizes = [sum(map(torch.numel, pruner.sentence_transformer.parameters())) for pruner in pruners]
    assert sizes == [pruner.model.num_parameters() for pruner in pruners] and sizes[0] > sizes[1]


LOADING = """
import importlib.abc, sys
class NoPlugin(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "optimum_kprune":
            raise ImportError(name)
sys.meta_path.insert(0, NoPlugin())
import numpy as np
from sentence_transformers import SentenceTransformer
texts = open(sys.argv[1]).read().splitlines()
for folder in sys.argv[2:]:
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(model.encode(texts), np.load(sys.argv[1] + ".npy"))
    assert model.encode_query(texts[0]).tolist() != model.encode_document(texts[0]).tolist()
"""


def test_saved_pipelines_load_with_the_same_embeddings_also_without_the_plugin(encoder, tmp_path):
    pruner = prune(make_pipeline(encoder, "cls", [models.Dense(HIDDEN, 8), models.Normalize()], prompts=PROMPTS))
    folders = [str(tmp_path / name) for name in ("by-the-pruner", "by-the-library")]
    pruner.save_pretrained(folders[0])
    pruner.sentence_transformer.save_pretrained(folders[1])
    embeddings = pruner.sentence_transformer.encode(TEXTS)
    for folder in folders:
        loaded = SentenceTransformer(folder, device="cpu")
        np.testing.assert_array_equal(loaded.encode(TEXTS), embeddings)
        assert loaded.prompts == PROMPTS and loaded.max_seq_length == 30
        assert prune(loaded).model.num_parameters() < pruner.model.num_parameters()
    texts = tmp_path / "texts"
    texts.write_text("\n".join(TEXTS))
    np.save(tmp_path / "texts.npy", embeddings)
    done = subprocess.run([sys.executable, "-c", LOADING, texts, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("trained", [False, True])
def test_the_card_is_that_of_the_pruned_pipeline(encoder, tmp_path, trained):
    pipeline = make_pipeline(encoder)
    pipeline._model_card_text = "# The dense model"
    if trained:
        rows = Dataset.from_dict({"first": TEXTS[:4], "second": TEXTS[4:8], "score": [0.0, 0.2, 0.7, 1.0]})
        args = SentenceTransformerTrainingArguments(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True
        )
        SentenceTransformerTrainer(pipeline, args, rows).train()
    pruner = prune(pipeline)
    pruner.save_pretrained(tmp_path / "one")
    pruner.sentence_transformer.save_pretrained(str(tmp_path / "other"))
    cards = [(tmp_path / name / "README.md").read_text() for name in ("one", "other")]
    assert cards[0] == cards[1]
    for expected in (
        "library_name: sentence-transformers",
        "from sentence_transformers import SentenceTransformer",
        'model = SentenceTransformer("path/to/this/folder", trust_remote_code=True)',
        "pruner = KPruner.from_sentence_transformer(sentence_transformer=...)",
    ):
        assert expected in cards[0]
    assert {"kprune_config.json", "kprune_report.json", "modules.json"} <= set(
        path.name for path in (tmp_path / "one").iterdir()
    )


# What cannot be pruned


def static_pipeline(encoder):
    return SentenceTransformer(modules=[StaticEmbedding(tiny_tokenizer(), embedding_dim=8)], device="cpu")


def routed_pipeline(encoder):
    router = Router.for_query_document([models.Transformer(encoder)], [models.Transformer(encoder)])
    return SentenceTransformer(modules=[router, models.Pooling(HIDDEN)], device="cpu")


def weighted_layers(encoder):
    return make_pipeline(encoder, behind=[models.WeightedLayerPooling(HIDDEN, num_hidden_layers=LAYERS)])


def tokens_only(encoder):
    return SentenceTransformer(modules=[models.Transformer(encoder)], device="cpu")


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (static_pipeline, "StaticEmbedding"),
        (routed_pipeline, "Router, Pooling"),
        (weighted_layers, "Transformer, Pooling, WeightedLayerPooling"),
        (tokens_only, "Transformer"),
    ],
)
def test_other_pipelines_are_refused(encoder, make, given):
    allowed = "none but Pooling, Dense, LayerNorm, Dropout, Normalize after the Transformer"
    with pytest.raises(ValueError, match=rf"must be a Transformer and a Pooling.*{allowed}.*Got {given} instead"):
        KPruner.from_sentence_transformer(make(encoder))


def test_the_model_of_a_cross_encoder_can_be_pruned_by_itself(tmp_path):
    folder = save_tiny(tmp_path / "model", tiny_model(num_labels=1))
    cross_encoder = CrossEncoder(str(folder), device="cpu")
    pruner = KPruner(cross_encoder.model, cross_encoder.tokenizer)
    pruner.prune(CONFIG, list(zip(TEXTS[:12], TEXTS[12:], strict=True)), save_directory=tmp_path / "pruned")
    scores = CrossEncoder(str(tmp_path / "pruned"), device="cpu").predict([(TEXTS[0], TEXTS[1])])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert loaded.num_parameters() < cross_encoder.model.num_parameters() and np.isfinite(scores).all()


def test_what_is_no_pipeline_is_refused(encoder):
    with pytest.raises(ValueError, match=r"must be a loaded SentenceTransformer. Got str instead"):
        KPruner.from_sentence_transformer(encoder)
    pipeline = make_pipeline(encoder)
    for way_in in (KPruner, KPruner.from_pretrained):
        with pytest.raises(ValueError, match=r"Got SentenceTransformer instead.*KPruner.from_sentence_transformer\("):
            way_in(pipeline)


def test_there_is_a_pipeline_only_after_a_prune_of_one(encoder):
    with pytest.raises(ValueError, match="There is no pruned model"):
        KPruner.from_sentence_transformer(make_pipeline(encoder)).sentence_transformer  # noqa: B018
    with pytest.raises(ValueError, match=r"no pipeline.*Use `KPruner.from_sentence_transformer"):
        KPruner(tiny_model()).sentence_transformer  # noqa: B018


def test_a_folder_with_a_pipeline_that_is_loaded_as_an_encoder_is_told_of(encoder, tmp_path, caplog):
    folder = str(tmp_path / "pipeline")
    make_pipeline(encoder).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        KPruner.from_pretrained(encoder, task="feature-extraction")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        KPruner.from_pretrained(folder)
    assert "is a pipeline of sentence-transformers, of which only the encoder was loaded" in caplog.text


@pytest.mark.parametrize(("default", "is_told"), [("query", True), ("document", False), (None, False)])
def test_a_default_prompt_is_told_of(encoder, default, is_told, caplog):
    """Of the two prompts, one is empty."""
    KPruner.from_sentence_transformer(make_pipeline(encoder, prompts=PROMPTS, default_prompt_name=default))
    assert ("its default prompt, 'w3 w4 ', but calibration texts get none" in caplog.text) == is_told


# The command


def test_the_command_prunes_a_pipeline_as_a_whole(encoder, tmp_path, monkeypatch, capsys):
    """With its norm and prompts; with a task, the encoder alone."""
    make_pipeline(encoder, behind=[models.Normalize()], prompts=PROMPTS).save_pretrained(str(tmp_path / "dense"))
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    given = ["--model", str(tmp_path / "dense"), "--dataset", str(tmp_path / "texts.txt")]
    for name, task in {"pipeline": [], "alone": ["--task", "feature-extraction"]}.items():
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "kprune", *given, *task, str(tmp_path / name)])
        optimum_cli.main()
    assert capsys.readouterr().out.count("held-out samples: cosine") == 2
    pruned = SentenceTransformer(str(tmp_path / "pipeline"), device="cpu")
    assert pruned.prompts == PROMPTS and isinstance(pruned[-1], models.Normalize)
    expected = KPruner.from_sentence_transformer(SentenceTransformer(str(tmp_path / "dense"), device="cpu"))
    expected.prune(KPruneConfig(), expected.get_calibration_dataset(str(tmp_path / "texts.txt")))
    assert same_state(pruned[0].auto_model, expected.model)
    assert not (tmp_path / "alone" / "modules.json").exists()


# The card of the smaller pipeline


def test_the_data_of_the_card_is_about_the_smaller_pipeline(tmp_path):
    encoder = save_tiny(tmp_path / "encoder", tiny_model(head="base model"))
    pipeline = SentenceTransformer(modules=[models.Transformer(str(encoder)), models.Pooling(HIDDEN)], device="cpu")
    pruner = KPruner.from_sentence_transformer(pipeline)
    pruner.prune(KPruneConfig(), texts_of(ragged_samples()))
    smaller = pruner.sentence_transformer
    assert smaller.model_card_data.model is smaller and pipeline.model_card_data.model is pipeline
