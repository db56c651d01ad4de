"""Budgets in words."""

import pytest

from optimum_kprune.budget import Budget, amount_in_words, parse_budget, unit_called

READ = {
    "100 MB": ("megabytes", 100, False),
    "0.5GB": None,
    "250 megabytes": ("megabytes", 250, False),
    "10ms": ("latency", 10, False),
    "2.5 milliseconds": ("latency", 2.5, False),
    "50% latency": ("latency", 0.5, True),
    "12M parameters": ("parameters", 12e6, False),
    "1,000.5 MB": ("megabytes", 1000.5, False),
    "1,5 MB": None,
    "1,5% flops": None,
    "1_0 MB": None,
    "12_000_000 params": ("parameters", 12e6, False),
    "1,500k parameters": ("parameters", 1.5e6, False),
    "4 layers": ("layers", 4, False),
    "1 layer": ("layers", 1, False),
    "45% layers": ("layers", 0.45, True),
    "70% megabytes": ("megabytes", 0.7, True),
    "100% parameters": ("parameters", 1.0, True),
    "40% flops": ("flops", 0.4, True),
    "3e8 FLOPs": ("flops", 3e8, False),
    "101% flops": None,
    "0 MB": None,
    "0% latency": None,
    "2.5 layers": None,
    "-5 MB": None,
    "1e999 flops": None,
    "10": None,
    "fast": None,
    "": None,
}


@pytest.mark.parametrize(("text", "read"), READ.items())
def test_a_budget_is_read_from_words(text, read):
    if read is None:
        with pytest.raises(ValueError, match="A budget must be"):
            parse_budget(text)
    else:
        budget = parse_budget(text)
        assert budget == Budget(*read)
        assert parse_budget(str(budget)) == budget


def test_a_share_is_one_of_the_dense_model():
    assert parse_budget("40% flops").amount_of(50) == 20
    assert parse_budget("40 ms").amount_of(50) == 40


def test_amounts_are_told_in_words():
    assert (amount_in_words("megabytes", 90.94), amount_in_words("latency", 9.876)) == ("90.94 MB", "9.88 ms")
    assert (amount_in_words("layers", 1), amount_in_words("layers", 4), amount_in_words("parameters", 12e6)) == (
        "1 layer",
        "4 layers",
        "12,000,000 parameters",
    )
    assert [str(parse_budget(text)) for text in ("1 layers", "100% layer", "2k ms")] == [
        "1 layer",
        "100% layers",
        "2000 ms",
    ]


def test_units_have_several_names():
    assert [unit_called(name) for name in ("MB", "ms", "layer", "flops", "m")] == [
        "megabytes",
        "latency",
        "layers",
        "flops",
        None,
    ]
