"""Time to detect the objects of one image, for every detector, on the CPU.

    python benchmarks/detectors.py
    python benchmarks/detectors.py --runs RUN ...

The time covers everything from the prepared image to the rows: the network, decoding its boxes, and
non-maximum suppression. The detectors alternate, with batch size 1. A detector of CASES is
untrained, so that few boxes pass the score threshold and suppression costs little. A run has its
trained weights and its own image size, and its average precision on its validation images is listed
next to its time.

Writes results/benchmark_detectors.json. There is no target.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, median, record
from torch import nn

from plusx import store
from plusx.data.batch import Batch
from plusx.grammar.heads import FasterRcnn, Fcos, Head, MaskRcnn, Yolo
from plusx.models import create_model
from plusx.nn.with_head import NetworkWithHead
from plusx.run.file_names import RESULT
from plusx.run.folder import load_run
from plusx.tasks.detect import Detect
from plusx.tasks.task import Task


CLASSES = 20


@dataclass(frozen=True)
class Case:
    """An untrained detector, and the size of its images."""

    network: str
    head: Head
    size: tuple[int, int] = (480, 640)


CASES = (
    Case("resnet18", Fcos()),
    Case("resnet50", Fcos(width=256, depth=4, levels=5)),
    Case("darknet53", Yolo(), (416, 416)),
    Case("resnet50", FasterRcnn()),
    Case("resnet50", MaskRcnn()),
)


@dataclass(frozen=True)
class Contender:
    """A detector, and the facts that its row lists."""

    name: str
    task: Task
    size: tuple[int, int]
    facts: dict[str, Any]

    def predictor(self) -> Callable[[], object]:
        """A function that predicts one image."""
        generator = torch.Generator().manual_seed(SEED)
        channels = 3 if self.facts.get("channels") is None else self.facts["channels"]
        image = torch.randn(1, channels, *self.size, generator=generator)
        image = image.contiguous(memory_format=torch.channels_last)
        return lambda: self.task.predict(Batch(image))


def untrained(case: Case, size: tuple[int, int]) -> Contender:
    """A detector with its initial weights, which has no accuracy."""
    net = NetworkWithHead(
        create_model(case.network, num_classes=CLASSES, seed=SEED), case.head, CLASSES
    )
    task = Detect(net).eval().to(memory_format=torch.channels_last)
    return Contender(f"{case.network}, {case.head.kind}", task, size, {"weights": "untrained"})


def trained(path: Path) -> Contender:
    """The detector of a run, with its metrics on its validation images."""
    run, result = load_run(path), store.read_json(path / RESULT)
    if not isinstance(run.task, Detect):
        raise ValueError(f"{path} is not a run of a detector")
    metrics = result["validation"] or {}
    facts = {"weights": "trained", "channels": run.preprocessing.channels}
    facts |= {"split": "validation"} | {name: metrics.get(name) for name in run.task.scores}
    name = f"{result['name']}, {run.task.kind}, {result['data']}"
    task = run.task.to(memory_format=torch.channels_last)
    return Contender(name, task, run.preprocessing.size, facts)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def measure(contenders: list[Contender], threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contender."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        predictors = {contender.name: contender.predictor() for contender in contenders}
        for predictor in predictors.values():
            predictor()
        times = in_turns(predictors, rounds)
    rows = []
    for contender in contenders:
        taken = median(times[contender.name].wall)
        seconds = {"value": taken.value, "low": taken.low, "high": taken.high}
        size, count = list(contender.size), parameters(contender.task.net)
        row = {"name": contender.name, "size": size, "threads": threads, "seconds": seconds}
        rows.append(row | {"parameters": count} | contender.facts)
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One image's boxes, by every detector.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_detectors.json")
    parser.add_argument(
        "--tiny", action="store_true", help="one small detector, to check that it runs"
    )
    args = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    cases, rounds = (CASES[:1], 2) if args.tiny else (CASES, args.rounds)
    contenders = [untrained(case, (64, 96) if args.tiny else case.size) for case in cases]
    contenders += [trained(path) for path in args.runs]
    rows = [row for count in args.threads for row in measure(contenders, count, rounds)]
    torch.set_num_threads(before)
    estimates = {
        f"{row['name']}, {row['threads']} thread(s)": Estimate(**row["seconds"]) for row in rows
    }
    for name, estimate in estimates.items():
        print(f"{name:60} {estimate}")
    record(
        args.out,
        rows,
        estimates,
        recipe={"batch": 1, "rounds": rounds, "classes": CLASSES},
        versions={},
        load_before=load_before,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
