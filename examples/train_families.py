"""Trains small encoders of several families, in minutes each, offline, on a CPU. They show what a prune costs each.

python examples/train_families.py vit beit dinov2 wav2vec2 ast --output_dir models
python examples/train_families.py bert mpnet --teacher path/to/classifier --dataset path/to/data --output_dir models

Images are the digits of scikit-learn. Sounds are melodies of three tones: from a noisy wave, tell the second note.
Encoders of text begin with what fits of a classifier of sentences of BERT's layout, the teacher, and learn its logits
and last hidden states. They need no labels, and take over its tokenizer. Each family becomes a folder.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from families_data import (
    BATCH_SIZE,
    NOTES,
    Labelled,
    class_logits,
    draw_digits,
    draw_melodies,
    encode,
    predict_classes,
    read_sentences,
)
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import logging

from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.sublayers import Encoder, Place

VALIDATION_ROWS = 600

SMALL = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 512}
IMAGE = SMALL | {"image_size": 16, "patch_size": 4}
WAVE = SMALL | {
    "conv_dim": (64, 64, 64),
    "conv_kernel": (16, 8, 8),
    "conv_stride": (8, 5, 4),
    "num_feat_extract_layers": 3,
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 8,
    "classifier_proj_size": 128,
}
MEL = {"num_mel_bins": 64, "max_length": 28}
SPECTROGRAM = SMALL | MEL | {"patch_size": 4, "time_stride": 4, "frequency_stride": 4}
TEXT = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1536}
DISENTANGLED = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 32, "share_att_key": True}
DISENTANGLED |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
FROM_LABELS: dict[str, Any] = {"steps": 1_000, "learning_rate": 1e-3}
T5 = {"d_model": 384, "num_layers": 4, "num_heads": 12, "d_kv": 32, "d_ff": 1536}


@dataclass(frozen=True)
class Family:
    """A small encoder to train.

    Attributes:
        auto_class: the Auto class of its head.
        model_type: its name in transformers.
        options: of its config.
        draw: draws rows and their labels, by their number and a seed; None for sentences.
        processor: makes the processor of the rows; None for sentences, which are read by the teacher's tokenizer.
        query_scale: what the teacher's queries are multiplied with.
        steps: of training.
        learning_rate: the highest of the schedule.
    """

    auto_class: Any
    model_type: str
    options: dict[str, Any]
    draw: Callable[..., Labelled] | None = None
    processor: Callable[[], Any] | None = None
    query_scale: float = 1.0
    steps: int = 400
    learning_rate: float = 5e-4


def images(model_type: str, options: dict[str, Any]) -> Family:
    """Returns a family that reads digits."""
    processor = partial(ViTImageProcessor, size={"height": 16, "width": 16})
    options = IMAGE | options | {"num_labels": 10}
    return Family(AutoModelForImageClassification, model_type, options, draw_digits, processor, **FROM_LABELS)


def sounds(model_type: str, options: dict[str, Any], processor: Callable[[], Any]) -> Family:
    """Returns a family that reads melodies."""
    options |= {"num_labels": NOTES}
    return Family(AutoModelForAudioClassification, model_type, options, draw_melodies, processor, **FROM_LABELS)


texts = partial(Family, AutoModelForSequenceClassification)

FAMILIES = {
    "vit": images("vit", {}),
    "beit": images("beit", {"use_relative_position_bias": True}),
    "dinov2": images("dinov2", {"mlp_ratio": 4}),
    "wav2vec2": sounds("wav2vec2", WAVE, Wav2Vec2FeatureExtractor),
    "ast": sounds("audio-spectrogram-transformer", SPECTROGRAM, partial(ASTFeatureExtractor, **MEL)),
    "bert": texts("bert", TEXT),
    "mpnet": texts("mpnet", TEXT),
    "deberta-v3": texts("deberta-v2", TEXT | DISENTANGLED),
    "modernbert": texts("modernbert", TEXT | {"local_attention": 16, "classifier_pooling": "mean"}),
    "albert": texts("albert", TEXT | {"embedding_size": 384}),
    # T5's class for sequences has a decoder. Here the mean over the logits of all tokens is that of the sentence.
    # Its attention does not divide by the root of the size of a head.
    "t5": Family(AutoModelForTokenClassification, "t5", T5, query_scale=T5["d_kv"] ** -0.5),
}


def make_model(family: Family, options: dict[str, Any]) -> PreTrainedModel:
    """Returns the encoder of a family with random weights."""
    config = AutoConfig.for_model(family.model_type, **family.options, **options)
    # Without dropout, layer drop and masks over the input: so few steps overfit nothing.
    return family.auto_class.from_config(config).eval()


def train(model: PreTrainedModel, losses: Iterator[Tensor], steps: int, learning_rate: float) -> None:
    """Trains a model on losses, one per step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    started, recent = time.perf_counter(), 0.0
    for step, loss in enumerate(losses, 1):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        recent += loss.item() / 100
        if step % 100 == 0:
            print(f"  {step} of {steps} steps: loss {recent:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
            recent = 0.0


def label_losses(
    model: PreTrainedModel, processor: Any, draw: Callable[..., Labelled], steps: int, seed: int
) -> Iterator[Tensor]:
    """Yields the losses of a model on labels, of new rows in every step."""
    for step in range(steps):
        rows, labels = draw(BATCH_SIZE, (seed, step))
        yield model(**encode(processor, rows), labels=torch.from_numpy(labels)).loss


def teacher_losses(
    model: PreTrainedModel, tokenizer: Any, teacher: PreTrainedModel, sentences: Sequence[str], steps: int, seed: int
) -> Iterator[Tensor]:
    """Yields how far a model is from its teacher: in its last hidden states, and in the classes of sentences."""
    generator = np.random.default_rng(seed)
    drawn = sorted(map(str, generator.choice(sentences, steps * BATCH_SIZE)), key=len)  # to spare padding
    for start in BATCH_SIZE * generator.permutation(steps):
        inputs = encode(tokenizer, drawn[start : start + BATCH_SIZE])
        with torch.no_grad():
            expected = teacher(**inputs, output_hidden_states=True)
        outputs = model(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool()
        hidden, target = (each.hidden_states[-1][real] for each in (outputs, expected))
        classes, wanted = (class_logits(each, inputs).log_softmax(dim=-1) for each in (outputs, expected))
        yield (hidden - target).square().mean() / target.var() + (wanted.exp() * (wanted - classes)).sum(dim=-1).mean()


def train_on_labels(family: Family, steps: int, args: argparse.Namespace) -> tuple[PreTrainedModel, Any, Labelled]:
    """Returns a trained encoder of images or sounds, its processor and rows to validate on."""
    processor = family.processor()
    model = make_model(family, {})
    train(model, label_losses(model, processor, family.draw, steps, args.seed), steps, family.learning_rate)
    return model, processor, family.draw(VALIDATION_ROWS, args.seed, validation=True)


@torch.no_grad()
def take_over(model: PreTrainedModel, teacher: PreTrainedModel, query_scale: float = 1.0) -> None:
    """Begins a model with the word embeddings and projections of its teacher, and with all else of the same name.

    The blocks of the model begin as blocks of the teacher, at equal steps. What has another shape stays random.
    """
    students, teachers = (Encoder(each, adapter_of(each)) for each in (model, teacher))
    layers = np.linspace(0, len(teachers.blocks) - 1, len(students.blocks)).round().astype(int)
    known = weights(teacher)
    for name, tensor in weights(model).items():
        source = known.get(re.sub(r"(?<=layer\.)\d+", lambda found: str(layers[int(found[0])]), name))
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
    copy_weights([model.get_input_embeddings()], [teacher.get_input_embeddings()])
    for sublayer in students.sublayers():
        source = teachers.sublayer(Place(layers[sublayer.layer], sublayer.place.position))
        copy_weights(sublayer.inputs, source.inputs)
        copy_weights([sublayer.output], [source.output])
        if sublayer.adapter.kind == "attention":
            sublayer.inputs[0].weight.mul_(query_scale)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the weights of a model, without the name of the family in their names."""
    return {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in model.state_dict().items()}


def copy_weights(targets: Sequence[nn.Module], sources: Sequence[nn.Module]) -> None:
    """Copies weights and biases of modules one below the other, if all together have the same shape."""
    for name in ("weight", "bias"):
        found = [[getattr(module, name, None) for module in modules] for modules in (targets, sources)]
        if any(tensor is None for tensors in found for tensor in tensors):
            continue
        source = torch.cat(found[1])
        if sum(map(len, found[0])) == len(source) and found[0][0].shape[1:] == source.shape[1:]:
            for tensor, part in zip(found[0], source.split([len(tensor) for tensor in found[0]]), strict=True):
                tensor.copy_(part)


def train_on_teacher(family: Family, steps: int, args: argparse.Namespace) -> tuple[PreTrainedModel, Any, Labelled]:
    """Returns a trained encoder of sentences, its tokenizer and rows to validate on."""
    teacher = AutoModelForSequenceClassification.from_pretrained(args.teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.teacher, model_input_names=["input_ids", "attention_mask"])
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    sizes = {"vocab_size": teacher.config.vocab_size, "num_labels": teacher.config.num_labels}
    model = make_model(family, ids | sizes)
    take_over(model, teacher, family.query_scale)
    model.get_input_embeddings().requires_grad_(False)
    sentences, _ = read_sentences(args.dataset, "train")
    losses = teacher_losses(model, tokenizer, teacher, sentences, steps, args.seed)
    train(model, losses, steps, family.learning_rate)
    return model.requires_grad_(True), tokenizer, read_sentences(args.dataset, "validation")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates and saves the families one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="+", choices=FAMILIES, metavar="family", help=", ".join(FAMILIES))
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the folders of the families")
    parser.add_argument("--teacher", help="classifier of sentences, for families of text")
    parser.add_argument("--dataset", help="its sentences: local folder, local file or name on the Hub")
    parser.add_argument("--steps", type=int, help="of training (default: those of the family)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    of_text = [name for name in args.families if FAMILIES[name].draw is None]
    if of_text and not (args.teacher and args.dataset):
        parser.error(f"{', '.join(of_text)}: families of text need --teacher and --dataset.")
    for name in args.families:
        common.require_free(args.output_dir / name)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    for name in args.families:
        family = FAMILIES[name]
        torch.manual_seed(args.seed)
        print(f"{name}:")
        train_one = train_on_labels if family.draw else train_on_teacher
        model, processor, (rows, labels) = train_one(family, args.steps or family.steps, args)
        accuracy = 100 * np.mean(predict_classes(model, processor, rows) == labels)
        print(f"  accuracy {accuracy:.1f} on {len(rows):,} validation rows")
        model.save_pretrained(args.output_dir / name)
        processor.save_pretrained(args.output_dir / name)


if __name__ == "__main__":
    main()
