"""Prunes a fine-tuned model, exports it in float and in int8, and runs the folder as a server without PyTorch does.

python examples/deploy.py --model distilbert/distilbert-base-uncased-finetuned-sst-2-english \
    --dataset nyu-mll/glue --dataset_config sst2 --compression_rate 0.6 --output_dir sst2-k60

The pruned model is saved in the output folder. What is served lies beside it, in `sst2-k60-onnx`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from tokenizers import Tokenizer

from optimum_kprune import KPruner


def answers(folder: Path, graph: str, *texts: str) -> dict[str, np.ndarray]:
    """Returns what a graph gives for a text or a pair, with ONNX Runtime and tokenizers alone."""
    # Imported here: it is optional, and the library says so before.
    import onnxruntime

    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(*texts)
    given = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    session = onnxruntime.InferenceSession(folder / "onnx" / graph)
    outputs = session.run(None, {each.name: np.array([given[each.name]]) for each in session.get_inputs()})
    return dict(zip((each.name for each in session.get_outputs()), outputs, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes, exports and runs what was exported."""
    args = common.parse_arguments(__doc__, ["sentence"], "label", arguments)
    folder = Path(f"{args.output_dir}-onnx")
    try:
        pruner = KPruner.from_pretrained(args.model)
        calibration = pruner.get_calibration_dataset(
            args.dataset,
            args.num_tokens,
            dataset_config_name=args.dataset_config,
            dataset_split=args.train_split,
            text_columns=args.text_columns,
            seed=args.seed,
        )
        # Whatever the export would refuse is told before the prune.
        pruner.require_exportable(folder, quantize="int8", calibration_dataset=calibration)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(pruner.prune(common.make_config(args), calibration, save_directory=args.output_dir))
    print(pruner.export(folder, quantize="int8", calibration_dataset=calibration))

    row = common.load_validation(args)[0]
    texts = [row[column] for column in args.text_columns]
    print(f"\n{json.dumps(texts)}")
    for graph in ("model.onnx", "model_quantized.onnx"):
        for name, values in answers(folder, graph, *texts).items():
            print(f"{graph}: {name} {np.round(values, 3).tolist()}")


if __name__ == "__main__":
    main()
