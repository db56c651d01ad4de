"""Tokenizers of every kind beside themselves with fewer tokens."""

import pytest
from vocabularies import FAMILIES, tokenizer, trimmed


@pytest.fixture(scope="module", params=FAMILIES)
def both(request):
    """The tokenizer, the same with fewer tokens, and the ids of those."""
    own = tokenizer(request.param)
    return own, *trimmed(own)
