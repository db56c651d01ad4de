"""The families that come with the library: each is known to transformers, and has adapters that survive JSON."""

import json

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from optimum_kprune import EncoderAdapter, supported_model_types
from optimum_kprune.encoder.adapters import adapters_of_type
from optimum_kprune.encoder.families import families

FAMILIES = {family.model_type: family for family in families()}


def test_every_family_is_in_the_table_once():
    assert sorted(FAMILIES) == supported_model_types()
    assert len(FAMILIES) == len(families())
    assert all(adapters_of_type(name) == family.adapters for name, family in FAMILIES.items())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_transformers_has_the_model_type_and_the_fields_that_are_set(family):
    assert family.model_type in CONFIG_MAPPING
    config = AutoConfig.for_model(family.model_type)
    for adapter in family.adapters:
        assert all(hasattr(config, name) for name in [*adapter.repeated, *adapter.repeated.values()])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_builds_of_a_family_tell_from_one_another(family):
    asked = [adapter.when for adapter in family.adapters]
    assert all(asked.count(when) == 1 for when in asked)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_adapters_survive_json(family):
    for adapter in family.adapters:
        assert EncoderAdapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_checkpoints_are_names_on_the_hub(family):
    assert family.checkpoints
    assert all(name.count("/") == 1 and not name.startswith(".") for name in family.checkpoints)
