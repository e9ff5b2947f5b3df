"""K small networks with K seeds trained together, against one after another.

    python benchmarks/together.py                            (about three minutes on two cores)

Networks of one make, each with weights and images of its own. A round is one step of every one of
them, in three ways:

    one by one       the plain loop of PyTorch's tutorials with our networks, one after another
    ours one by one  `fit` as `plusx train` has it, one after another
    together         `fit_together`: all as one network, the channels of each a group

The losses of all three have to be equal to TOLERANCE before anything is timed: over STEPS steps in
float64, and over ROUNDED in float32. The ratio is the time one by one over that together. The first
case is what `plusx compare digits` trains; in the others images or batches are larger, and there is
less to win: their convolutions are long enough to be quick alone.

Writes results/benchmark_together.json. Status 1 says that a case with a target is below it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import nn
from torch.nn import functional as F

import plusx
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant
from plusx.train.together import fit_together


TARGET = 1.3
STEPS, ROUNDED = 20, 2  # whose losses are compared in float64, in float32
TOLERANCE = 1e-4  # relative
TINY = 2
RATE, MOMENTUM, DECAY = 0.001, 0.9, 1e-4
BATCHES = 4  # different ones, over and over

Step = Callable[[], list[float]]  # one step of every network, and the loss of each


@dataclass(frozen=True)
class Case:
    """A network, how many of them, and what each is trained on."""

    model: str
    count: int
    size: int
    channels: int
    batch_size: int
    asked: bool  # whether the target holds here

    def __str__(self) -> str:
        return f"{self.count} {self.model}, {self.batch_size} of {self.size} x {self.size}"


CASES = (
    Case("resnet20", 8, 8, 1, 64, True),
    Case("plain20", 8, 8, 1, 64, True),
    Case("resnet20", 8, 14, 1, 32, False),
    Case("resnet20", 4, 32, 3, 32, False),
)


def networks(case: Case, precision: torch.dtype) -> list[nn.Module]:
    """A network for every seed, the same every time."""
    spec = replace(
        plusx.find(case.model), size=case.size, in_channels=case.channels, num_classes=10
    )
    return [plusx.create_model(spec, seed=seed).to(precision) for seed in range(case.count)]


def training_data(case: Case, precision: torch.dtype) -> list[list[plusx.Batch]]:
    """Noise, other for every network: the time of a step does not depend on it."""
    random = torch.Generator().manual_seed(SEED)
    shape = (case.batch_size, case.channels, case.size, case.size)
    return [
        [
            plusx.Batch(
                torch.randn(shape, generator=random).to(precision),
                torch.randint(10, (case.batch_size,), generator=random),
            )
            for _ in range(BATCHES)
        ]
        for _ in range(case.count)
    ]


def plain_loop(net: nn.Module, batches: Sequence[plusx.Batch]) -> Callable[[], float]:
    """As PyTorch's tutorials train."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    upcoming: Iterator[plusx.Batch] = cycle(batches)

    def step() -> float:
        batch = next(upcoming)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def states(nets: Sequence[nn.Module]) -> list[plusx.State]:
    """As a run begins."""
    begun = []
    for seed, net in enumerate(nets):
        task = plusx.prepare(plusx.Classify(net), device="cpu")
        optimizer = make_optimizer(task, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        begun.append(plusx.State(task, optimizer, seed))
    return begun


def contenders(case: Case, precision: torch.dtype = torch.float32) -> dict[str, Step]:
    """All three, with equal weights and before their first step."""
    data = training_data(case, precision)
    loops = [plain_loop(*each) for each in zip(networks(case, precision), data, strict=True)]
    fits = [
        plusx.fit(state, cycle(batches), constant(RATE))
        for state, batches in zip(states(networks(case, precision)), data, strict=True)
    ]
    all_data = cycle(zip(*data, strict=True))
    joint = fit_together(states(networks(case, precision)), all_data, constant(RATE))
    return {
        "one by one": lambda: [step() for step in loops],
        "ours one by one": lambda: [next(reports).loss for reports in fits],
        "together": lambda: [report.loss for report in next(joint)],
    }


def check_equal(steps: dict[str, Step], number: int) -> float:
    """Take the first steps of all: how far a loss lies from the first one's, relative to it.

    ValueError: it is above TOLERANCE, so that what is timed would not be the same work.
    """
    losses = {name: np.array([step() for _ in range(number)]) for name, step in steps.items()}
    first, *others = losses
    apart = {name: float(np.max(np.abs(losses[name] / losses[first] - 1))) for name in others}
    furthest = max(apart, key=lambda name: apart[name])
    if not apart[furthest] <= TOLERANCE:
        raise ValueError(f"{furthest} learns otherwise than {first}: {apart[furthest]} apart")
    return apart[furthest]


def measure(case: Case, threads: int, rounds: int, in_float64: float) -> dict[str, Any]:
    """A row of the result."""
    torch.set_num_threads(threads)
    steps = contenders(case)
    in_float32 = check_equal(steps, TINY if rounds == TINY else ROUNDED)
    for step in steps.values():
        step()
    times = in_turns(steps, rounds)
    joint = times["together"]
    found = {
        f"{name} / together": ratio(times[name].wall, joint.wall)
        for name in ("one by one", "ours one by one")
    }
    asked = found["one by one / together"]
    return {
        **asdict(case),
        "threads": threads,
        "rounds": rounds,
        "loss_differences": {"float64": in_float64, "float32": in_float32},
        "seconds": {name: float(np.median(each.wall)) for name, each in times.items()},
        "ratios": {name: asdict(each) for name, each in found.items()},
        "target": TARGET if case.asked else None,
        "missed": case.asked and asked.value < TARGET,
        "processor_time_ratios": {
            f"{name} / together": asdict(ratio(times[name].processor, joint.processor))
            for name in ("one by one", "ours one by one")
        },
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Networks trained together and one by one.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_together.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to see that it runs; judges nothing"
    )
    said = parser.parse_args(arguments)
    rounds = TINY if said.tiny else said.rounds
    cases = [replace(CASES[0], count=2, batch_size=8)] if said.tiny else CASES
    load_before, before = load(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    estimates: dict[str, Estimate] = {}
    for case in cases:
        torch.set_num_threads(max(said.threads))
        checked = replace(case, count=min(case.count, 3), batch_size=min(case.batch_size, 8))
        in_float64 = check_equal(contenders(checked, torch.float64), TINY if said.tiny else STEPS)
        for threads in said.threads:
            row = measure(case, threads, rounds, in_float64)
            rows.append(row)
            for name, each in row["ratios"].items():
                key = f"{case}, {threads} thread(s), {name}"
                estimates[key] = Estimate(**each)
                missed = row["missed"] and name.startswith("one") and not said.tiny
                print(f"{key:72} {estimates[key]}{'  MISSED' if missed else ''}")
    torch.set_num_threads(before)
    record(
        said.out,
        rows,
        estimates,
        recipe={"optimizer": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
        | {"rounds": rounds, "target": TARGET, "tolerance": TOLERANCE}
        | {"steps_compared": {"float64": STEPS, "float32": ROUNDED}},
        versions={},
        load_before=load_before,
    )
    return int(any(row["missed"] for row in rows) and not said.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
