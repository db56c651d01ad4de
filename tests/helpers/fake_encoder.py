"""An encoder as remote code: this file is copied into a checkpoint, whose config names its classes."""

import json
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class FakeConfig(PretrainedConfig):
    model_type = "fake-encoder"

    def __init__(self, vocab_size=120, hidden_size=32, intermediate_size=64, n_positions=40, **kwargs):
        self.vocab_size, self.hidden_size, self.n_positions = vocab_size, hidden_size, n_positions
        self.intermediate_size, self.num_hidden_layers, self.num_attention_heads = intermediate_size, 3, 4
        super().__init__(**kwargs)


class FakeAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads, self.head_dim = 4, config.hidden_size // 4
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, mask):
        heads = self.Wqkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FakeMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc11 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc12 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.fc2(self.fc11(hidden_states) * nn.functional.silu(self.fc12(hidden_states)))


class FakeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.attn, self.mlp = FakeAttention(config), FakeMLP(config)

    def forward(self, hidden_states, mask):
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), mask)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class FakePreTrainedModel(PreTrainedModel):
    config_class = FakeConfig
    base_model_prefix = "encoder"


class FakeModel(FakePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(FakeBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        hidden_states = self.embeddings(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask[:, None, None, :].bool())
        return BaseModelOutput(last_hidden_state=hidden_states)


class FakeForSequenceClassification(FakePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = FakeModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, return_dict=None):
        states = self.encoder(input_ids, attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(states[:, 0]))


def save_with_code(model, folder):
    """A checkpoint with this file beside it, as remote code is published."""
    model.save_pretrained(folder)
    file = Path(shutil.copy(__file__, folder)).stem
    config = json.loads((folder / "config.json").read_text())
    heads = {"AutoConfig": "Config", "AutoModel": "Model"}
    heads["AutoModelForSequenceClassification"] = "ForSequenceClassification"
    config["auto_map"] = {auto: f"{file}.Fake{name}" for auto, name in heads.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
