"""Served folders load where this package is not installed, and most of them where PyTorch is not, either.

`make compatibility` makes the environments, one for each kind of program.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from shrunk import pruned_model
from tiny import HIDDEN, outputs_of, ragged_samples, save_tiny, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

ENVIRONMENTS = Path(__file__).parents[2] / ".compatibility"
# Exports take long: nothing is exported where nothing could load it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any((ENVIRONMENTS / name).exists() for name in ("onnxruntime", "optimum-onnx", "transformers.js")),
        reason="no environments; `make compatibility` makes them",
    ),
]
HEADS = {
    "single label": "SequenceClassification",
    "regression": "SequenceClassification",
    "question answering": "QuestionAnswering",
    "token classification": "TokenClassification",
    "base model": "FeatureExtraction",
}
TEXTS = texts_of(ragged_samples(24))
GRAPHS = ("model.onnx", "model_quantized.onnx")

# Every program finds the folders, and in each of them what to expect. It writes, by folder and graph, the largest
# difference of an output as a share of the largest value.
BEGIN = """
import importlib.util, json, sys
from pathlib import Path
import numpy

def difference(found, expected):
    expected = numpy.array(expected)
    found = numpy.asarray(found)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(abs(found - expected).max() / abs(expected).max())

assert importlib.util.find_spec("optimum_kprune") is None
told = {}
cases = {Path(folder): json.loads(Path(folder, "expected.json").read_text()) for folder in sys.argv[1:]}
"""
END = "\nprint(json.dumps(told))\n"
TOKENIZED = """
import tokenizers

def inputs_for(folder, texts, names):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=1)
    encoded = tokenizer.encode_batch(texts)
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: numpy.array([getattr(each, fields[name]) for each in encoded]) for name in names}

for package in ("torch", "transformers"):
    assert importlib.util.find_spec(package) is None
"""
BARE = """
import onnxruntime
for folder, case in cases.items():
    for file in sorted(folder.glob("onnx/*.onnx")):
        session = onnxruntime.InferenceSession(file)
        inputs = inputs_for(folder, case["texts"], [each.name for each in session.get_inputs()])
        outputs = dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs)))
        told[f"{folder.name} {file.name}"] = max(difference(outputs[name], case["outputs"][name]) for name in outputs)
"""
OPENVINO = """
import openvino
for folder, case in cases.items():
    for file in sorted(folder.glob("onnx/*.onnx")):
        # OpenVINO takes half precision where the processor has it.
        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = model(inputs_for(folder, case["texts"], [each.any_name for each in model.inputs]))
        found = {each.any_name: outputs[each] for each in model.outputs}
        told[f"{folder.name} {file.name}"] = max(difference(found[name], case["outputs"][name]) for name in found)
"""
OPTIMUM = """
import optimum.onnxruntime
from transformers import AutoTokenizer, pipeline
for folder, case in cases.items():
    model_class = getattr(optimum.onnxruntime, "ORTModelFor" + case["head"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for file in sorted(folder.glob("onnx/*.onnx")):
        model = model_class.from_pretrained(folder, file_name=file.name)
        outputs = model(**tokenizer(case["texts"], padding=True, return_tensors="np"))
        told[f"{folder.name} {file.name}"] = max(difference(outputs[name], case["outputs"][name]) for name in outputs)
    if case["head"] == "TokenClassification":
        tagged = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")
        groups = {group["entity_group"] for text in tagged(case["texts"]) for group in text}
        assert groups and groups <= set(model.config.label2id)
    if case["head"] == "QuestionAnswering":
        answer = pipeline("question-answering", model=model, tokenizer=tokenizer)
        assert answer(question="w1 w2", context=case["texts"][0])["answer"] in case["texts"][0]
"""
SENTENCE_TRANSFORMERS = """
import sentence_transformers
for folder, case in cases.items():
    for file in sorted(folder.glob("onnx/*.onnx")):
        options = dict(backend="onnx", device="cpu", model_kwargs={"file_name": file.name})
        if "embeddings" in case:
            model = sentence_transformers.SentenceTransformer(str(folder), **options)
            found, expected = model.encode(case["texts"]), case["embeddings"]
        else:
            model = sentence_transformers.CrossEncoder(str(folder), **options)
            pairs = list(zip(case["texts"], reversed(case["texts"])))
            found, expected = model.predict(pairs), case["scores"]
        told[f"{folder.name} {file.name}"] = difference(found, expected)
"""
JAVASCRIPT = """
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import * as library from "@huggingface/transformers";

library.env.allowRemoteModels = false;
const told = {};
for (const folder of process.argv.slice(2)) {
  library.env.localModelPath = dirname(folder) + "/";
  const { texts, outputs, head } = JSON.parse(readFileSync(join(folder, "expected.json")));
  for (const [dtype, file] of [["fp32", "model.onnx"], ["q8", "model_quantized.onnx"]]) {
    const tokenizer = await library.AutoTokenizer.from_pretrained(basename(folder));
    const name = head === "FeatureExtraction" ? "AutoModel" : "AutoModelFor" + head;
    const model = await library[name].from_pretrained(basename(folder), { dtype });
    const found = await model(tokenizer(texts, { padding: true, truncation: true }));
    let largest = 0;
    for (const [name, values] of Object.entries(outputs)) {
      const expected = values.flat(Infinity), data = found[name].data;
      if (data.length !== expected.length) throw new Error(name);
      const scale = Math.max(...expected.map(Math.abs));
      expected.forEach((value, index) => (largest = Math.max(largest, Math.abs(value - data[index]) / scale)));
    }
    told[basename(folder) + " " + file] = largest;
  }
}
console.log(JSON.stringify(told));
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A served folder of each head, of models some of whose sublayers have no units; in it, what to expect."""
    root = tmp_path_factory.mktemp("served")
    for head, name in HEADS.items():
        model, tokenizer = pruned_model(tiny_model("bert", head)).eval(), tiny_tokenizer()
        folder = root / head.replace(" ", "-")
        texts = [{name: [value] for name, value in tokenizer(text).items()} for text in TEXTS]
        KPruner(model, tokenizer).export(folder, quantize="int8", calibration_dataset=texts, report=False)
        write_expected(folder, model, tokenizer, name)
    return root


@pytest.fixture(scope="module")
def served_pipelines(served, tmp_path_factory):
    """A served bi-encoder, a reranker, and a model with one label, which the library takes for a reranker, too."""
    root = tmp_path_factory.mktemp("pipelines")
    modules = [Transformer(str(save_tiny(root / "dense", tiny_model("bert", "base model"))))]
    pipeline = SentenceTransformer(modules=[*modules, Pooling(HIDDEN, "mean"), Normalize()], device="cpu")
    pruner = KPruner.from_sentence_transformer(pipeline)
    pruner.prune(KPruneConfig(compression_rate=0.6, num_tokens=None), TEXTS)
    pruner.export(root / "embeddings", quantize="int8", calibration_dataset=TEXTS, report=False)
    expected = {"texts": TEXTS, "embeddings": pruner.sentence_transformer.encode(TEXTS).tolist()}
    (root / "embeddings" / "expected.json").write_text(json.dumps(expected))
    reranker = CrossEncoder(str(save_tiny(root / "scorer", tiny_model("bert", "regression"))), device="cpu")
    pruner = KPruner.from_cross_encoder(reranker)
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    pruner.prune(KPruneConfig(compression_rate=0.6, num_tokens=None), pairs)
    report = pruner.export(root / "reranker", quantize="int8", calibration_dataset=pairs)
    assert {row.closeness.measure for row in report.rows} == {"order agreement"}
    expected = {"texts": TEXTS, "scores": pruner.cross_encoder.predict(pairs).tolist()}
    (root / "reranker" / "expected.json").write_text(json.dumps(expected))
    return [root / "embeddings", root / "reranker", served / "regression"]


def write_expected(folder, model, tokenizer, head):
    with torch.no_grad():
        outputs = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
        pairs = tokenizer(TEXTS, TEXTS[::-1], padding=True, truncation=True, return_tensors="pt")
        scores = outputs_of(model, pairs)[0]
    expected = {"texts": TEXTS, "head": head, "outputs": {name: value.tolist() for name, value in outputs.items()}}
    # What the library does with the output of a reranker.
    expected |= {"scores": scores.sigmoid().flatten().tolist()} if model.config.num_labels == 1 else {}
    (folder / "expected.json").write_text(json.dumps(expected))


def differences(environment, program, folders):
    """Runs a program in an environment; returns what it wrote."""
    command = ENVIRONMENTS / environment / ("bin/python" if program is not JAVASCRIPT else "check.mjs")
    if not command.parent.exists():
        pytest.skip(f"no environment with {environment}; `make compatibility` makes it")
    if program is JAVASCRIPT:
        command.write_text(program)
    run = ["node", command] if program is JAVASCRIPT else [command, "-I", "-c", program]
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([*run, *folders], env=settings, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def assert_like_pytorch(told, folders):
    assert set(told) == {f"{folder.name} {graph}" for folder in folders for graph in GRAPHS}
    for name, found in told.items():
        assert found < (0.2 if name.endswith(GRAPHS[1]) else 1e-4), told


@pytest.mark.parametrize(
    ("environment", "program"),
    [
        ("onnxruntime", BEGIN + TOKENIZED + BARE + END),
        ("openvino", BEGIN + TOKENIZED + OPENVINO + END),
        ("optimum-onnx", BEGIN + OPTIMUM + END),
        ("transformers.js", JAVASCRIPT),
    ],
    ids=["onnxruntime", "openvino", "optimum-onnx", "transformers.js"],
)
def test_every_head_gives_what_pytorch_gives(environment, program, served):
    folders = sorted(served.iterdir())
    assert_like_pytorch(differences(environment, program, folders), folders)


def test_sentence_transformers_encodes_and_reranks_on_onnx(served_pipelines):
    told = differences("optimum-onnx", BEGIN + SENTENCE_TRANSFORMERS + END, served_pipelines)
    assert_like_pytorch(told, served_pipelines)
