"""A session: orders are carried out when they are asked for, and what its models depend on."""

from tiny import batches_of, ragged_samples, same_state, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.order import Order, PruneData, configs_of

CONFIG = KPruneConfig(num_tokens=None, heldout_share=0)


def session_of(pruner, config=CONFIG, count=24):
    data = PruneData(batches_of(ragged_samples(count)), None, None, 12)
    return pruner._session([Order(pruner, config, None, None, False)], data)


def order_of(rate):
    return Order(KPruner(tiny_model(), tiny_tokenizer()), configs_of([rate], CONFIG)[0], None, None, False)


def test_several_calls_give_what_one_gives():
    with session_of(KPruner(tiny_model(), tiny_tokenizer())) as session:
        apart = [next(iter(session.carry_out([order_of(rate)]))) for rate in (0.6, 0.3)]
    with session_of(KPruner(tiny_model(), tiny_tokenizer())) as session:
        at_once = list(session.carry_out([order_of(rate) for rate in (0.6, 0.3)]))
    for (one, result), (other, expected) in zip(apart, at_once, strict=True):
        assert same_state(one.pruner.model, other.pruner.model) and result.kept == expected.kept
        assert one.pruner.result == result and one.pruner.config is one.config


def test_models_depend_on_settings_and_data():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with session_of(pruner) as session:
        identity = session.identity(CONFIG)
        assert session.identity(KPruneConfig(ridge=0.5)) != identity
    with session_of(pruner, count=30) as session:
        assert session.identity(CONFIG) != identity


def test_the_dense_model_is_equal_to_itself():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with session_of(pruner) as session:
        assert session.heldout_of_dense() is None
    with session_of(pruner, KPruneConfig(num_tokens=None, heldout_share=0.5), count=240) as session:
        heldout = session.heldout_of_dense()
    assert (heldout.measure, heldout.closeness, heldout.divergence) == ("agreement", 1.0, 0.0)
    assert pruner.teacher.training
