"""What the tests of adapters and sublayers share."""

import pytest
from tiny import FAMILIES, encoder_of, tiny_model


@pytest.fixture(params=FAMILIES)
def encoder(request):
    model = tiny_model(request.param, "base model").eval()
    return encoder_of(model.requires_grad_(False))
