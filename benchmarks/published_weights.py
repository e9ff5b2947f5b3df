"""Evaluate published trained weights on CIFAR-10's test set, after conversion.

    PLUSX_DATA=DIR python benchmarks/published_weights.py

DIR has cifar-10-batches-bin and, under weights/, the files of NAMED_SETS. Writes
results/published_weights.json and exits with status 1 if an accuracy differs from the expected one.
Nothing is trained or tuned.
"""

import hashlib
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.run.environment import environment
from plusx.run.evaluation import evaluate
from plusx.run.folder import load_run, now
from plusx.weights import convert


RESULT = Path(__file__).parents[1] / "results" / "published_weights.json"


@dataclass(frozen=True)
class Published:
    """A file under DIR/weights, and how many of the 10,000 test images its network classifies
    correctly."""

    file: str
    model: str
    source: str
    right: int


NAMED_SETS = (
    Published("akamaster_cifar10/resnet20-12fca82f.th", "resnet20", "akamaster", 9173),
    Published("akamaster_cifar10/resnet32-d509ac18.th", "resnet32", "akamaster", 9263),
    Published("akamaster_cifar10/resnet44-014dd654.th", "resnet44", "akamaster", 9311),
    Published("akamaster_cifar10/resnet56-4bfd9763.th", "resnet56", "akamaster", 9339),
    Published("mlperf_tiny_resnet8/resnet8.npz", "resnet8_keras", "keras", 8721),
)


def measure(item: Published, data: Path) -> dict[str, Any]:
    """Convert a file as `plusx convert` does, and evaluate it as `plusx evaluate` does."""
    file = data / "weights" / item.file
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "net.safetensors"
        convert(file, item.model, item.source, to)
        figures = evaluate(load_run(to), data="cifar10", split="test", batch_size=250, device="cpu")
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "model": item.model,
        "source": item.source,
        "right": round(figures["accuracy"] * figures["count"]),
        "count": figures["count"],
        "accuracy": figures["accuracy"],
        "expected": item.right / 10_000,
    }


def main() -> int:
    data = os.environ.get("PLUSX_DATA")
    if data is None:
        print("set PLUSX_DATA to the folder of the public data sets", file=sys.stderr)
        return 2
    rows = []
    for item in NAMED_SETS:
        rows.append(measure(item, Path(data)))
        row = rows[-1]
        print(f"{row['file']:26} {row['accuracy']:.4f}  expected {row['expected']:.4f}", flush=True)
    machine = environment(torch.device("cpu"))
    versions = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
    store.write_json(
        RESULT,
        {
            "value": {row["file"]: row["accuracy"] for row in rows},
            "spread": 0.0,  # one fixed network a file: nothing varies
            "seeds": [],
            "data": "cifar10, split test",
            "rows": rows,
            "command": f"python benchmarks/{shlex.quote(Path(__file__).name)}",
            "recipe": None,
            "versions": {name: machine.pop(name) for name in versions},
            "machine": machine,
            "date": now(),
        },
    )
    return int(any(row["accuracy"] != row["expected"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
