"""The time until the boxes of one image are told, by every detector, on the CPU.

    python benchmarks/detectors.py
    python benchmarks/detectors.py --runs RUN ...

What is timed is all that stands between a prepared image and its rows: the network, the boxes
from what it tells, and the suppression of those that overlap. In turns, batch 1. A detector of
CASES has the weights it begins with, so that few boxes are sure and suppression costs little; a
run has what it learned, is timed at its own size, and its average precision on its validation
images stands beside its time.

Writes results/benchmark_detectors.json. There is no target: the table is for choosing.
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
from plusx.run.folder import RESULT, load_run
from plusx.tasks.detect import Detect
from plusx.tasks.task import Task


CLASSES = 20


@dataclass(frozen=True)
class Case:
    """A detector as it begins, and the size of its images."""

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
    """Something that tells boxes, and what is known of it."""

    name: str
    task: Task
    size: tuple[int, int]
    facts: dict[str, Any]

    def ask(self) -> Callable[[], object]:
        """One image told."""
        made = torch.Generator().manual_seed(SEED)
        channels = 3 if self.facts.get("channels") is None else self.facts["channels"]
        image = torch.randn(1, channels, *self.size, generator=made)
        image = image.contiguous(memory_format=torch.channels_last)
        return lambda: self.task.predict(Batch(image))


def begun(case: Case, size: tuple[int, int]) -> Contender:
    """A detector with the weights it begins with."""
    net = NetworkWithHead(
        create_model(case.network, num_classes=CLASSES, seed=SEED), case.head, CLASSES
    )
    task = Detect(net).eval().to(memory_format=torch.channels_last)
    return Contender(f"{case.network}, {case.head.kind}", task, size, {"weights": "as begun"})


def trained(path: Path) -> Contender:
    """What a run learned, with its figures."""
    run, result = load_run(path), store.read_json(path / RESULT)
    if not isinstance(run.task, Detect):
        raise ValueError(f"{path} finds no boxes")
    figures = result["validation"] or {}
    facts = {"weights": "trained", "channels": run.preprocessing.channels}
    facts |= {name: figures.get(name) for name in run.task.scores}
    name = f"{result['name']}, {run.task.kind}, {result['data']}"
    task = run.task.to(memory_format=torch.channels_last)
    return Contender(name, task, run.preprocessing.size, facts)


def parameters(net: nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


def measure(everyone: list[Contender], threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        asked = {each.name: each.ask() for each in everyone}
        for ask in asked.values():
            ask()
        times = in_turns(asked, rounds)
    rows = []
    for each in everyone:
        taken = median(times[each.name].wall)
        seconds = {"value": taken.value, "low": taken.low, "high": taken.high}
        size, count = list(each.size), parameters(each.task.net)
        row = {"name": each.name, "size": size, "threads": threads, "seconds": seconds}
        rows.append(row | {"parameters": count} | each.facts)
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One image's boxes, by every detector.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_detectors.json")
    parser.add_argument(
        "--tiny", action="store_true", help="one small detector, to see that it runs"
    )
    said = parser.parse_args(arguments)
    load_before, before = load(), torch.get_num_threads()
    cases, rounds = (CASES[:1], 2) if said.tiny else (CASES, said.rounds)
    everyone = [begun(case, (64, 96) if said.tiny else case.size) for case in cases]
    everyone += [trained(path) for path in said.runs]
    rows = [row for count in said.threads for row in measure(everyone, count, rounds)]
    torch.set_num_threads(before)
    estimates = {
        f"{row['name']}, {row['threads']} thread(s)": Estimate(**row["seconds"]) for row in rows
    }
    for name, each in estimates.items():
        print(f"{name:60} {each}")
    record(
        said.out,
        rows,
        estimates,
        recipe={"batch": 1, "rounds": rounds, "classes": CLASSES},
        versions={},
        load_before=load_before,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
