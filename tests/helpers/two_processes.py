"""What each of two processes does: it is started as a launcher starts it, runs all jobs one after the other and leaves
what came out in a file."""

import faulthandler
import os
import socket
from argparse import ArgumentParser
from contextlib import nullcontext
from unittest import mock

import torch
from datasets import Dataset
from tiny import SPECIAL, batches_of, pad, ragged_samples, texts_of, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from optimum.commands.register.register_kprune import KPruneCommand
from optimum_kprune import KPruneCallback, KPruneConfig, KPruner, progress
from optimum_kprune import cli as command
from optimum_kprune.distributed import is_main, share
from optimum_kprune.encoder.tasks import RANKING
from optimum_kprune.prune import rate, spending, statistics
from optimum_kprune.prune import sweep as sweeping
from optimum_kprune.publish import hub
from optimum_kprune.recovery import learner
from optimum_kprune.recovery import text as recovery_text

SAMPLES = ragged_samples(40)
UNKNOWN = SPECIAL.index("<unk>")
RATES = [0.4, 0.7]


def settings(**overrides):
    defaults = {"compression_rate": 0.6, "num_tokens": None, "measure_tokens": None, "heldout_share": 0}
    return KPruneConfig(**{**defaults, **overrides})


def told(one):
    """What of a prune must be the same in all processes, and in one alone."""
    result = one.result
    counts = [result.samples, result.tokens, result.sequence_length]
    return {"kept": result.kept, "counts": counts, "state": one.model.state_dict()}


def prune_texts(folder):
    one = KPruner(tiny_model(), tiny_tokenizer())
    config = settings(measure_tokens=120, heldout_share=0.3)
    one.prune(config, texts_of(SAMPLES), batch_size=2, save_directory=folder / "texts")
    return told(one) | {"heldout": vars(one.result.heldout)}


def prune_with_gradients_of_batches(folder):
    one = KPruner(tiny_model("distilbert", "question answering"))
    one.prune(settings(gradient="batch", knowledge="divergence", memory_budget=0), batches_of(SAMPLES, 5))
    return told(one)


def prune_on_one_batch(folder):
    """The second process has none."""
    one = KPruner(tiny_model("electra", "token classification"))
    one.prune(settings(), [pad(SAMPLES)])
    return told(one)


def prune_a_reranker(folder):
    """On queries with one to three candidates."""
    texts = texts_of(SAMPLES)
    groups = [(query, texts[start : start + 1 + start % 3]) for start, query in enumerate(texts[:20])]
    one = KPruner(tiny_model(num_labels=1), tiny_tokenizer())
    # As `from_cross_encoder` has it, whose pipeline would be loaded from a folder that the main process alone writes.
    one.task = RANKING
    one.prune(settings(heldout_share=0.3), groups)
    return told(one)


def prune_to_whole_layers(folder):
    one = KPruner(tiny_model())
    one.prune(settings(compression_rate=0.5, budget="2 layers"), batches_of(SAMPLES, 5))
    return told(one)


def sweep(folder):
    swept = KPruner(tiny_model()).sweep(RATES, settings(), batches_of(SAMPLES, 5), save_directory=folder / "sweep")
    parts = [told(one) for one in swept]
    found = {name: [part[name] for part in parts] for name in ("kept", "counts")}
    states = [(str(index), part["state"]) for index, part in enumerate(parts)]
    return found | {"state": {index + name: values for index, state in states for name, values in state.items()}}


def train(folder):
    """The model that a callback prunes behind a training of all processes, which leaves it as it was."""
    rows = [{"input_ids": ids, "label": index % 3} for index, ids in enumerate(SAMPLES)]
    callback = KPruneCallback(settings())
    options = dict(max_steps=1, learning_rate=0, use_cpu=True, report_to="none", disable_tqdm=True)
    args = TrainingArguments(folder / "run", save_strategy="no", **options)
    data = dict(train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer())
    Trainer(tiny_model(), args, callbacks=[callback], **data).train()
    return told(callback.pruner)


def train_and_recover(folder):
    """A training of all processes in another precision, and a prune with a recovery at its end."""
    rows = Dataset.from_list([{"input_ids": ids, "label": index % 3} for index, ids in enumerate(ragged_samples(200))])
    callback = KPruneCallback(settings(heldout_share=0.3, recovery_tokens=3000, recovery_learning_rate=1e-4))
    options = dict(max_steps=1, bf16=True, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = Trainer(
        tiny_model(),
        TrainingArguments(folder / "recovered", **options),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
        callbacks=[callback],
    )
    # Some steps, from little text.
    with mock.patch.object(recovery_text, "BATCH_TOKENS", 128):
        trainer.train()
    result = callback.pruner.result
    return {
        "state": callback.pruner.model.state_dict(),
        "recovery": (result.recovery.steps, result.recovery.tokens, result.recovery.kept_step, result.heldout),
        "trainer": (trainer.accelerator.mixed_precision, trainer.evaluate()["eval_loss"]),
    }


def recover_texts(folder):
    """Of some batches, the second process has no sample. Its checkpoint is read by a second call."""
    recovery = dict(recovery_tokens=300, recovery_learning_rate=0.01, recovery_precision="float32")
    config = settings(heldout_share=0.3, **recovery)
    with mock.patch.object(recovery_text, "BATCH_TOKENS", 24):
        for _ in range(2):
            one = KPruner(tiny_model(), tiny_tokenizer())
            one.prune(config, texts_of(SAMPLES), batch_size=2, checkpoint_dir=folder / "progress")
    return told(one) | {"heldout": vars(one.result.heldout), "steps": one.result.recovery.kept_step}


PRUNES = [prune_texts, prune_with_gradients_of_batches, prune_on_one_batch, prune_to_whole_layers, sweep, train]
PRUNES += [prune_a_reranker]


def error_of(job, *args, **kwargs):
    try:
        job(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def fail(rank):
    """Errors that one or both processes run into; each is caught, and the next job goes on."""
    prune, batches = KPruner(tiny_model()).prune, batches_of(SAMPLES, 5)
    errors = {}
    broken, spoilt = tiny_model(), batches_of(SAMPLES, 5)
    # A word of which only the second process has a sample overflows.
    broken.bert.embeddings.word_embeddings.weight.data[UNKNOWN] = 3e38
    spoilt[1]["input_ids"][0, 1] = UNKNOWN
    errors["not finite in one"] = error_of(KPruner(broken).prune, settings(), spoilt)
    errors["other data"] = error_of(prune, settings(), batches[rank:])
    errors["other weights"] = error_of(KPruner(tiny_model(seed=rank)).prune, settings(), batches)
    with only_in_second(rank, statistics, "add_up_fits", side_effect=OSError("the disk is full")):
        errors["second, in work"] = error_of(prune, settings(), batches)
    with only_in_second(rank, learner.Learner, "forward", side_effect=OSError("the memory is broken")):
        recovery = settings(heldout_share=0.5, recovery_tokens=100)
        errors["second, in a recovery"] = error_of(prune, recovery, batches_of(SAMPLES, 2))
    with only_in_second(rank, sweeping, "KPruneResult", side_effect=KeyError("late")):
        errors["second, at the end"] = error_of(prune, settings(), batches)
    return errors


def save(rank, folder):
    one = KPruner(tiny_model())
    one.prune(settings(), batches_of(SAMPLES, 5))
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "mine.txt").write_text("precious")
    uploads = mock.patch.object(hub, "upload", side_effect=lambda *args: f"commit of {rank}")
    with mock.patch.object(hub, "create_repository", side_effect=lambda name, *args: name), uploads as upload:
        commit = one.push_to_hub("me/small")
    return {"taken": error_of(one.save_pretrained, folder / "taken"), "commit": (commit, upload.call_count)}


def run_command(folder):
    parser = ArgumentParser()
    KPruneCommand.parse_args(parser)
    given = ["--model", "/nowhere/model", "--dataset", "/nowhere/data", str(folder / "o")]
    try:
        command.run(parser.parse_args(given))
    except SystemExit as exit:
        return exit.code


def only_in_second(rank, *args, **kwargs):
    return mock.patch.object(*args, **kwargs) if rank == 1 else nullcontext()


def prune_with_another_solution(rank, folder):
    """The second process finds other units and weights than the first, as rounding may make it."""
    select = spending.select_units

    def solve(fit, start, *args):
        return start._replace(weight=start.weight + 1)

    with (
        only_in_second(rank, rate.LeastSquares, "solve", solve),
        only_in_second(rank, spending, "select_units", lambda *args: [~selected for selected in select(*args)]),
    ):
        return prune_texts(folder / "other")


def work(rank, folder, port):
    """What one of two processes does, as a launcher starts it."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    # Who waits for ever says where, and ends.
    faulthandler.dump_traceback_later(900, exit=True)
    bars = mock.patch.object(progress, "tqdm", wraps=progress.tqdm)
    with bars as bar, mock.patch.object(sweeping, "Predictions", wraps=sweeping.Predictions) as pairs:
        found = {job.__name__: job(folder) for job in PRUNES}
    found |= {"recovered": train_and_recover(folder)}
    found |= {"batches": [(len(call.args[0]), call.args[0].measured) for call in pairs.call_args_list]}
    found |= {"hidden bars": [call.kwargs.get("disable", False) for call in bar.call_args_list]}
    found |= {"recovered texts": recover_texts(folder)}
    found |= {"other solution": prune_with_another_solution(rank, folder)}
    found |= {"shares": [list(share(range(count))) for count in (0, 1, 5)], "is main": is_main()}
    found |= {"errors": fail(rank), "saved": save(rank, folder), "exit": run_command(folder)}
    torch.save(found, folder / f"{rank}.pt")


def free_port():
    """A port below those that systems give to connections, so that none of them takes it before it is used."""
    for port in range(10_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as listening:
            if listening.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no port is free")
