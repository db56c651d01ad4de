"""The table of supported models, as the command line prints it."""

import re

from optimum_kprune.encoder.families import families
from optimum_kprune.model_list import model_list, units_of


def test_every_family_has_a_line_with_what_is_known_of_it():
    headings, *lines = model_list().splitlines()
    assert headings.split("  ")[0] == "model type" and len(lines) == len(families())
    for family, line in zip(families(), lines, strict=True):
        name, reads, pruned, told = re.split(r" {2,}", line, maxsplit=3)
        assert (name, reads, pruned) == (family.model_type, family.modality, units_of(family))
        assert all(checkpoint in told for checkpoint in family.checkpoints) and told.endswith(family.note)


def test_the_units_are_those_of_the_rows():
    units = {family.model_type: units_of(family) for family in families()}
    assert units["bert"] == units["vit"] == "heads, neurons" and units["longformer"] == units["fnet"] == "neurons"


def test_the_command_lists_models_whatever_else_is_missing(command, capsys):
    assert command("kprune", "--list_models") == 0
    captured = capsys.readouterr()
    assert captured.out == model_list() and not captured.err
