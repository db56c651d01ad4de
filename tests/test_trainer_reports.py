"""An evaluation is no run of its own: it makes no repository and reports to nobody."""

import pytest
import transformers
from datasets import Dataset
from tiny import ragged_samples, texts_of, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from optimum_kprune import KPruneConfig, KPruner

ROWS = Dataset.from_list([{"input_ids": ids, "label": index % 3} for index, ids in enumerate(ragged_samples(12))])


@pytest.fixture
def done(monkeypatch):
    """Whom trainers report to, and the repositories that they make."""
    calls = []
    monkeypatch.setattr(transformers.integrations, "get_available_reporting_integrations", lambda: ["somebody"])
    reporting = "get_reporting_integration_callbacks"
    monkeypatch.setattr(transformers.trainer, reporting, lambda names: calls.extend(names) or [])
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_, **__: calls.append("repository"))
    return calls


def test_an_evaluation_like_that_of_a_trainer_is_silent(tmp_path, done):
    args = TrainingArguments(tmp_path, report_to="all", push_to_hub=True, use_cpu=True, disable_tqdm=True)
    data = {"train_dataset": ROWS, "eval_dataset": ROWS, "processing_class": tiny_tokenizer()}
    pruner = KPruner.from_trainer(Trainer(tiny_model(), args, **data))
    assert done == ["somebody", "repository"], "the trainer itself was to do both"
    pruner.prune(KPruneConfig())
    pruner.evaluate()
    assert done == ["somebody", "repository"]
    assert args.push_to_hub and args.report_to == ["somebody"]


def test_an_evaluation_on_data_is_silent(done):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(KPruneConfig(), ROWS)
    pruner.evaluate(Dataset.from_dict({"text": texts_of(ROWS["input_ids"]), "label": ROWS["label"]}))
    assert not done
