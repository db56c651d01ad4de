"""What the constructors of rows fill in."""

from optimum_kprune import SublayerAdapter
from optimum_kprune.encoder.layouts import attention, ffn


def test_an_attention_row_names_the_inputs_in_its_module_and_counts_what_is_given():
    made = attention("a.self", "q k", "a.out", units="heads", arguments={"bias": 1})
    assert made == SublayerAdapter(
        kind="attention",
        inputs={"a.self.q": 1, "a.self.k": 1},
        output="a.out",
        residual="a.self.q",
        bypass="a.self",
        returns_tuple=True,
        counts={"a.self.heads": "units"},
        arguments={"bias": 1},
    )


def test_what_a_row_says_is_taken_before_what_is_filled_in():
    made = attention("a", "q", "a.o", "norm", bypass="", returns_tuple=3)
    assert (made.residual, made.bypass, made.returns_tuple, made.counts) == ("norm", "", 3, {})


def test_a_feed_forward_row_takes_out_the_module_of_its_inputs_or_the_first_of_them():
    assert ffn("mlp.gate mlp.up", "mlp.down", "norm").bypass == "mlp"
    assert ffn("fc1", "fc2").bypass == "fc1"
    assert ffn("fc1", "fc2").residual == "fc1"
