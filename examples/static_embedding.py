"""Makes a static encoder of a sentence encoder: one vector per token, and no blocks at all.

The recipe is that of model2vec: every token of the vocabulary goes through the encoder alone, the principal components
of the results are kept, and frequent tokens count less. A text is the mean of its tokens.
"""

import re

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DIMENSIONS = 256
FREQUENT = 1e-4  # the share of all words from which on a token counts less than half
UNUSED = re.compile(r"\[unused\d+\]")  # places that BERT's vocabulary leaves free
BATCH_SIZE = 512


class StaticEncoder(PreTrainedModel):
    """Looks up the vectors of tokens, in the place of the hidden states of an encoder.

    Args:
        config: config with the number of tokens, the size of their vectors and the padding token.
    """

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids: Tensor, **unused: Tensor) -> dict[str, Tensor]:
        """Returns vectors (rows, tokens, dimensions), those of special tokens zero."""
        return {"last_hidden_state": self.embedding(input_ids)}


@torch.inference_mode()
def make_static(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dimensions: int = DIMENSIONS
) -> StaticEncoder:
    """Returns the static encoder of a sentence encoder that averages over its tokens.

    Args:
        model: the encoder.
        tokenizer: its tokenizer, whose tokens are taken to be sorted by their frequency, as vocabularies are.
        dimensions: how many principal components are kept.
    """
    special = set(tokenizer.all_special_ids)
    text = tokenizer("a", return_special_tokens_mask=True)
    plain = [place for place, special in enumerate(text["special_tokens_mask"]) if not special]
    before, after = text["input_ids"][: plain[0]], text["input_ids"][plain[-1] + 1 :]
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    used = [token for token, name in enumerate(names) if not UNUSED.fullmatch(name) and token not in special]
    rows = torch.tensor([[*before, token, *after] for token in used], device=model.device)
    vectors = torch.cat([model(input_ids=batch).last_hidden_state.mean(dim=1) for batch in rows.split(BATCH_SIZE)])
    vectors = (vectors - vectors.mean(dim=0)).double()
    components = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)[:, :dimensions]
    # Zipf's law: the share of a token falls as its rank grows.
    shares = 1 / torch.arange(2, len(used) + 2, dtype=torch.float64, device=model.device)
    table = torch.zeros(len(names), components.shape[1], device=model.device)
    table[used] = (vectors @ components * (FREQUENT / (FREQUENT + shares / shares.sum()))[:, None]).float()
    sizes = {"vocab_size": len(table), "hidden_size": table.shape[1], "pad_token_id": model.config.pad_token_id}
    encoder = StaticEncoder(PreTrainedConfig(**sizes)).eval()
    encoder.embedding.weight.copy_(table)
    return encoder
