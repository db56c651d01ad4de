"""kprune_config.json is the same file, whoever writes it."""

from tiny import texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.modeling_kprune import SETTINGS_NAME


def test_the_model_writes_the_file_that_the_settings_write(tmp_path):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(KPruneConfig(ridge=0.5), texts_of([[5, 6, 7, 8]] * 20), save_directory=tmp_path / "pruned")
    pruner.config.save_pretrained(tmp_path / "settings")
    assert SETTINGS_NAME == KPruneConfig.CONFIG_NAME
    written, expected = ((tmp_path / name / SETTINGS_NAME).read_bytes() for name in ("pruned", "settings"))
    assert written == expected and expected.endswith(b"}\n")
