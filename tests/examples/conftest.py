"""What the examples change for the whole process is changed back."""

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def loud_transformers_afterwards():
    """The examples silence transformers for the whole process: other tests may want its warnings and bars."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
