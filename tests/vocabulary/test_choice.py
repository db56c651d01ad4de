"""Which tokens stay: sizes and shares that are met, parts that stay together."""

import numpy as np
import pytest

from optimum_kprune.vocabulary.choice import choose_tokens, with_parts

COUNTS = np.array([0, 5, 1, 9, 0, 3, 0, 2])
PARTS = {3: [1, 2], 2: [0], 7: [6]}


def parts(token):
    return PARTS.get(token, [])


def test_a_token_brings_its_parts_and_theirs():
    assert with_parts([3], parts) == {0, 1, 2, 3}


def test_basic_tokens_stay_and_the_most_frequent_tokens_fill_the_size():
    assert choose_tokens(COUNTS, {4}, lambda token: [], 4) == [1, 3, 4, 5]


def test_of_equal_counts_the_lower_id_is_the_more_general_token():
    assert choose_tokens(np.zeros(6, int), {5}, lambda token: [], 3) == [0, 1, 5]


@pytest.mark.parametrize("size", range(1, 9))
def test_a_size_is_filled_and_never_exceeded(size):
    kept = choose_tokens(COUNTS, {4}, parts, size)
    # There is always a token without parts, so that no place stays empty.
    assert len(kept) == size
    assert with_parts(kept, parts) == set(kept)


@pytest.mark.parametrize("share", [0.1, 0.45, 0.7, 0.85, 0.99, 1.0])
def test_a_share_is_covered_by_the_fewest_of_the_most_frequent_tokens(share):
    kept = choose_tokens(COUNTS, {4}, lambda token: [], share)
    assert COUNTS[kept].sum() >= share * COUNTS.sum()
    rarest = min((token for token in kept if token != 4), key=lambda token: COUNTS[token])
    assert COUNTS[kept].sum() - COUNTS[rarest] < share * COUNTS.sum()


def test_basic_tokens_cover_text_too():
    assert choose_tokens(COUNTS, {1, 3}, lambda token: [], 0.7) == [1, 3]
