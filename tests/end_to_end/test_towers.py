"""A part of a larger model of transformers, by its name: pruned by itself, saved, and loaded into the whole."""

import copy

import pytest
import torch
from tiny import HIDDEN, assert_same_outputs, batches_of, pad, ragged_samples, randomize, same_state, tiny_model
from transformers import BertLMHeadModel, CLIPConfig, CLIPModel, EncoderDecoderModel
from zoo import IMAGE, TEXT

from optimum_kprune import KPruneConfig, KPruner, load_into

BATCHES = batches_of(ragged_samples())
CONFIG = KPruneConfig(compression_rate=0.5, heldout_share=0)


def two_towers(seed=0):
    torch.manual_seed(seed)
    text, vision = dict(TEXT, projection_dim=HIDDEN), dict(IMAGE, projection_dim=HIDDEN)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=HIDDEN))
    randomize(model)
    return model.eval()


def pairs():
    return pad(ragged_samples(4)) | {"pixel_values": torch.randn(4, 3, 16, 16)}


def test_the_towers_are_named_where_none_is_chosen():
    with pytest.raises(ValueError, match=r"several encoders: 'text_model' \(CLIPTextModel\), 'vision_model'"):
        KPruner(two_towers())


def test_a_tower_is_pruned_by_its_own_embeddings_and_the_rest_stays(tmp_path):
    dense = two_towers()
    before = copy.deepcopy(dense)
    pruner = KPruner(dense, encoder="text_model")
    with torch.no_grad():
        outputs = dense.text_model(**BATCHES[0])
    prediction = pruner.task.predict(outputs, dense.text_model.config, BATCHES[0]["attention_mask"].bool())
    expected = torch.nn.functional.normalize(outputs.pooler_output, dim=-1)
    assert prediction.family == "gaussian" and torch.equal(prediction.values[:, 0], expected)
    pruner.prune(CONFIG, BATCHES, save_directory=tmp_path / "pruned")
    assert same_state(dense, before)
    alone = KPruner(dense.text_model)
    alone.task = pruner.task
    alone.prune(CONFIG, BATCHES)
    assert same_state(pruner.model.text_model, alone.model)
    for part in ("vision_model", "text_projection", "visual_projection"):
        assert same_state(pruner.model.get_submodule(part), dense.get_submodule(part))
    loaded = load_into(two_towers(seed=1), tmp_path / "pruned")
    assert_same_outputs(loaded.text_model, pruner.model.text_model, BATCHES[0])
    batch = pairs()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits_per_image, pruner.model(**batch).logits_per_image)


def test_the_encoder_of_a_model_that_generates_is_a_tower(tmp_path):
    bert = tiny_model(head="base model")
    decoder = copy.deepcopy(bert.config)
    decoder.is_decoder = decoder.add_cross_attention = True
    host = EncoderDecoderModel(encoder=bert, decoder=BertLMHeadModel(decoder))
    pruner = KPruner(host, encoder="encoder")
    pruner.prune(CONFIG, BATCHES)
    assert pruner.model.encoder.num_parameters() < host.encoder.num_parameters()
    assert same_state(pruner.model.decoder, host.decoder)
    with pytest.raises(ValueError, match="A BertLMHeadModel generates text"):
        KPruner(host, encoder="decoder")
