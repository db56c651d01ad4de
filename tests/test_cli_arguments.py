"""What the arguments of the command ask for."""

from argparse import ArgumentParser

from optimum.commands.register.register_kprune import KPruneCommand
from optimum_kprune import CardFacts, KPruneConfig
from optimum_kprune.cli_arguments import config_of, given_facts


def parsed(*arguments):
    parser = ArgumentParser()
    KPruneCommand.parse_args(parser)
    return parser.parse_args(["--model", "some/model", *arguments, "out"])


def test_the_card_names_the_data_set_of_the_metrics_if_it_has_a_name():
    given = ["--dataset_config", "sst2", "--eval_split", "test", "--metric", "accuracy=0.9,0.8"]
    facts = given_facts(parsed("--dataset", "nyu-mll/glue", *given))
    assert facts == CardFacts({"accuracy": (0.9, 0.8)}, "nyu-mll/glue", "sst2", "test")
    assert given_facts(parsed("--dataset", "./data.csv", *given)).dataset_name is None


def test_a_rate_takes_the_place_of_a_saved_budget(tmp_path):
    KPruneConfig(budget="1 layer").save_pretrained(tmp_path)
    config = config_of(parsed("--config", str(tmp_path), "--compression_rate", "0.6"))
    assert (config.budget, config.compression_rate) == (None, 0.6)
