"""What graphs are traced and checked on: the inputs that programs give them, in several sizes."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from zoo import batch_of, build

from optimum_kprune import KPruner
from optimum_kprune.export.inputs import inputs_of


def made(model, tokenizer=None, sample=None, **kwargs):
    pruner = KPruner(model, tokenizer, **kwargs)
    return inputs_of(model, pruner._input_spec(0), sample)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (tiny_model(), {"input_ids", "attention_mask", "token_type_ids"}),
        (tiny_model("roberta", type_vocab_size=1), {"input_ids", "attention_mask"}),
        (tiny_model("distilbert"), {"input_ids", "attention_mask"}),
    ],
    ids=["two types of tokens", "one type", "no types"],
)
def test_a_graph_reads_what_the_model_needs(model, expected):
    batches = [made(model).traced(), *made(model).checked(False)]
    assert all(set(batch) == expected for batch in batches)
    for batch in batches:
        model(**batch)


def test_types_are_read_only_if_the_tokenizer_gives_them():
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert "token_type_ids" not in made(tiny_model(), tokenizer).traced()


def test_texts_have_padding_pairs_and_sizes_that_tracing_did_not_have():
    inputs = made(tiny_model())
    traced, checked = inputs.traced(), list(inputs.checked(False))
    assert len({batch["input_ids"].shape for batch in (traced, *checked)}) == 1 + len(checked)
    assert 1 in [len(batch["input_ids"]) for batch in checked]
    for batch in (traced, *checked):
        assert batch["attention_mask"].unique().tolist() == batch["token_type_ids"].unique().tolist() == [0, 1]
        assert max(batch["input_ids"].shape) <= 40


def test_no_axis_is_one_where_it_is_traced():
    for name in ("bert", "vit", "wav2vec2"):
        assert all(min(values.shape[:2]) > 1 for values in made(build(name)).traced().values())


def test_samples_of_multiple_choice_have_choices():
    inputs = made(tiny_model("distilbert", "multiple choice"))
    assert all(values.dim() == 3 for batch in (inputs.traced(), *inputs.checked(False)) for values in batch.values())


def test_what_cannot_be_made_comes_from_a_sample():
    model, sample = build("layoutlm"), batch_of("layoutlm")
    inputs = made(model, sample=sample)
    for batch in (inputs.traced(), *inputs.checked(False)):
        assert batch["bbox"].shape == (*batch["input_ids"].shape, 4)
        assert torch.equal(batch["bbox"][0, 0], sample["bbox"][0, 0])
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask", "bbox"]
    with pytest.raises(ValueError, match="reads bbox, of which an example is needed"):
        made(model, tokenizer).traced()


def test_images_are_those_of_the_config_or_of_the_sample():
    model = build("vit")
    assert made(model).traced()["pixel_values"].shape == (2, 3, 16, 16)
    sample = batch_of("vit", seed=1)
    first, second, third = list(made(model, sample=sample).checked(False))[1]["pixel_values"]
    assert torch.equal(first, sample["pixel_values"][0])
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_audio_has_another_length_where_the_graph_takes_any():
    inputs = made(build("wav2vec2"))
    traced, (_, fixed), (_, cut) = inputs.traced(), inputs.checked(False), inputs.checked(True)
    lengths = [batch["input_values"].shape[1] for batch in (traced, fixed, cut)]
    assert lengths == [320, 320, 240]


def test_the_mask_of_audio_is_read_where_the_data_has_one():
    model, sample = build("wav2vec2/pre-norm"), batch_of("wav2vec2/pre-norm")
    assert set(made(model).traced()) == {"input_values"}
    assert set(made(model, sample=sample).traced()) == {"input_values", "attention_mask"}
