"""Evaluate published trained weights on CIFAR-10's test set, after conversion.

    PLUSX_DATA=DIR python benchmarks/published_weights.py

DIR has cifar-10-batches-bin and, under weights/, the files of NAMED_SETS. Writes
results/published_weights.json and exits with status 1 if a score differs from the expected one.
Nothing is trained or tuned.

The copy of CIFAR-10 that the recorded scores are from has REENCODED images of the test set only as
re-encoded JPEGs, with pixels near the official ones; its other 9,980 test images are exact. Scores
are of all 10,000, and of the 9,980, which another copy of CIFAR-10 must reproduce too.
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
from plusx.data.loader import Loader
from plusx.run.environment import environment
from plusx.run.evaluation import evaluate, evaluated_dataset
from plusx.run.folder import Run, load_run, now
from plusx.train.loop import evaluate as evaluate_task
from plusx.weights import convert


RESULT = Path(__file__).parents[1] / "results" / "published_weights.json"
# indices of test images, counted from 0: one horse and 19 ships
REENCODED = (
    1259, 1369, 1422, 2245, 2737, 2935, 3695, 3718, 4085, 4496,
    5791, 5896, 6286, 7580, 7707, 7724, 7832, 8117, 8551, 9254,
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A file under DIR/weights, and how many test images its network classifies correctly: of all
    10,000, and of the 9,980 exact ones."""

    file: str
    model: str
    source: str
    right: int
    right_exact: int


NAMED_SETS = (
    Published("akamaster_cifar10/resnet20-12fca82f.th", "resnet20", "akamaster", 9173, 9155),
    Published("akamaster_cifar10/resnet32-d509ac18.th", "resnet32", "akamaster", 9263, 9244),
    Published("akamaster_cifar10/resnet44-014dd654.th", "resnet44", "akamaster", 9311, 9291),
    Published("akamaster_cifar10/resnet56-4bfd9763.th", "resnet56", "akamaster", 9339, 9320),
    Published("mlperf_tiny_resnet8/resnet8.npz", "resnet8_keras", "keras", 8721, 8703),
)


def measure(item: Published, data: Path) -> dict[str, Any]:
    """Convert a file as `plusx convert` does, and evaluate it as `plusx evaluate` does."""
    file = data / "weights" / item.file
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "net.safetensors"
        convert(file, item.model, item.source, to)
        run = load_run(to)
        figures = evaluate(run, data="cifar10", split="test", batch_size=250, device="cpu")
        right, reencoded = _right(figures), _right(_of_reencoded(run))
    count, right_exact = figures["count"] - len(REENCODED), right - reencoded
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "model": item.model,
        "source": item.source,
        "right": right,
        "count": figures["count"],
        "accuracy": figures["accuracy"],
        "expected": item.right / 10_000,
        "exact": {
            "right": right_exact,
            "count": count,
            "accuracy": right_exact / count,
            "expected": item.right_exact / count,
        },
    }


def _of_reencoded(run: Run) -> dict[str, Any]:
    """Return the metrics of the run on the test images REENCODED."""
    dataset = evaluated_dataset(run, "cifar10", "test", "error")
    dataset = dataset.subset(torch.tensor(REENCODED))
    with Loader(dataset, split="all", batch_size=len(REENCODED)) as loader:
        return evaluate_task(run.task, loader.epoch(0))


def _right(figures: dict[str, Any]) -> int:
    return round(figures["accuracy"] * figures["count"])


def _as_expected(row: dict[str, Any]) -> bool:
    return all(scores["accuracy"] == scores["expected"] for scores in (row, row["exact"]))


def main() -> int:
    data = os.environ.get("PLUSX_DATA")
    if data is None:
        print("set PLUSX_DATA to the folder of the public data sets", file=sys.stderr)
        return 2
    rows = []
    for item in NAMED_SETS:
        rows.append(measure(item, Path(data)))
        row = rows[-1]
        for scores in (row, row["exact"]):
            print(
                f"{row['file']:26} {scores['count']:6,} images  {scores['accuracy']:.4f}  "
                f"expected {scores['expected']:.4f}",
                flush=True,
            )
    machine = environment(torch.device("cpu"))
    versions = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
    store.write_json(
        RESULT,
        {
            "value": {row["file"]: row["accuracy"] for row in rows},
            "spread": 0.0,  # one fixed network a file: nothing varies
            "seeds": [],
            "data": "cifar10, split test",
            "reencoded": list(REENCODED),
            "rows": rows,
            "command": f"python benchmarks/{shlex.quote(Path(__file__).name)}",
            "recipe": None,
            "versions": {name: machine.pop(name) for name in versions},
            "machine": machine,
            "date": now(),
        },
    )
    return int(not all(map(_as_expected, rows)))


if __name__ == "__main__":
    sys.exit(main())
