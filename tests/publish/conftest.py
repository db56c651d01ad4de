"""A Hub on this machine that sees every request, and a prune to publish."""

import pytest
from cards import pruned
from hub_stand_in import HubStandIn
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from tiny import tiny_model
from transformers.utils import hub as transformers_hub


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The Hub of this test, for huggingface_hub and transformers alike; a token is set."""
    server = HubStandIn()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture(scope="module")
def pruner():
    """One prune for the tests that only read it."""
    return pruned(tiny_model())
