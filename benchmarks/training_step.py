"""The time of one training step against torchvision's and pytorchcv's networks.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/training_step.py

A step is forward, cross-entropy, backward and SGD with momentum and weight decay, not compiled.
The peer is the library's network at its defaults in a plain loop. Beside it, in turns, run

    loop           plusx's own loop (Classify, make_optimizer, fit) at the peer's memory format
    channels_last  the same as `prepare` leaves it when nothing is said: channels innermost
    network        our network alone, in the peer's plain loop

on the same images from the same weights. Their first losses have to be equal: all four in float64,
and in float32 those of the peer's memory format (noise is learnt chaotically, so that another order
of summation soon shows there). A ratio is the peer's time over ours: above 1 we are faster.

Writes results/benchmark_training_step.json. Defaults are held against defaults: status 1 says that
the lower end of a `channels_last` interval is below FLOOR.

pytorchcv's ResNet-20 has projections where the shape changes, which is our resnet20_b.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn
from torch.nn import functional as F

import plusx
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant


FLOOR = 0.97
CHECKED = 5  # steps whose losses are compared; they warm up as well
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}  # relative
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
BATCHES = 8  # different ones, over and over

Step = Callable[[], float]  # trains on the next batch and gives its loss


@dataclass(frozen=True)
class Case:
    """A network of ours, the same of a peer, and what it is trained on."""

    model: str
    peer: str
    size: int
    batch_size: int
    classes: int


CASES = (
    Case("resnet18", "torchvision", 128, 8, 1000),
    Case("resnet20_b", "pytorchcv", 32, 32, 10),
)


def peer_network(case: Case) -> nn.Module:
    """The peer's network with its own random weights, the same every time."""
    torch.manual_seed(SEED)
    if case.peer == "torchvision":
        return torchvision.models.resnet18()
    from pytorchcv.model_provider import get_model

    net: nn.Module = get_model("resnet20_cifar10")
    return net


def our_network(case: Case, peer: nn.Module) -> nn.Module:
    """Our network with the peer's weights: their tensors come in the order of ours."""
    net: nn.Module = plusx.create_model(case.model)
    net.load_state_dict(dict(zip(net.state_dict(), peer.state_dict().values(), strict=True)))
    return net


def training_data(case: Case, precision: torch.dtype) -> list[plusx.Batch]:
    """Noise: the time of a step does not depend on what is on the images."""
    random = torch.Generator().manual_seed(SEED)
    shape = (case.batch_size, 3, case.size, case.size)
    return [
        plusx.Batch(
            torch.randn(shape, generator=random).to(precision),
            torch.randint(case.classes, (case.batch_size,), generator=random),
        )
        for _ in range(BATCHES)
    ]


def plain_loop(net: nn.Module, batches: list[plusx.Batch]) -> Step:
    """As PyTorch's tutorials train."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    upcoming: Iterator[plusx.Batch] = cycle(batches)

    def step() -> float:
        batch = next(upcoming)
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(net(batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def plusx_loop(net: nn.Module, batches: list[plusx.Batch], channels_last: bool) -> Step:
    """As plusx trains."""
    task = plusx.prepare(plusx.Classify(net), device="cpu", channels_last=channels_last)
    optimizer = make_optimizer(task, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    state = plusx.State(task, optimizer, seed=SEED)
    reports = plusx.fit(state, cycle(batches), constant(RATE))
    return lambda: next(reports).loss


def contenders(case: Case, precision: torch.dtype = torch.float32) -> dict[str, Step]:
    """The peer and ours, all with equal weights and before their first step."""
    peer, batches = peer_network(case).to(precision), training_data(case, precision)
    names = ("loop", "channels_last", "network")
    nets = {name: our_network(case, peer).to(precision) for name in names}
    return {
        "peer": plain_loop(peer, batches),
        "loop": plusx_loop(nets["loop"], batches, channels_last=False),
        "channels_last": plusx_loop(nets["channels_last"], batches, channels_last=True),
        "network": plain_loop(nets["network"], batches),
    }


def check_equal(steps: dict[str, Step], tolerance: float) -> float:
    """Take the first steps of all. The largest relative difference of a loss from the peer's.

    ValueError: it is above `tolerance`, so that what is timed would not be the same work.
    """
    losses = {name: [step() for _ in range(CHECKED)] for name, step in steps.items()}
    peer = np.array(losses["peer"])
    apart = {name: float(np.max(np.abs(np.array(got) / peer - 1))) for name, got in losses.items()}
    furthest = max(apart, key=lambda name: apart[name])
    if not apart[furthest] <= tolerance:
        raise ValueError(f"{furthest} is another network: {losses[furthest]}, not {losses['peer']}")
    return apart[furthest]


def measure(case: Case, threads: int, rounds: int) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """One row of the result, and the ratios of the three of ours by name."""
    torch.set_num_threads(threads)
    differences = {
        "float64": check_equal(contenders(case, torch.float64), TOLERANCE[torch.float64])
    }
    steps = contenders(case)
    same_format = {name: step for name, step in steps.items() if name != "channels_last"}
    differences["float32"] = check_equal(same_format, TOLERANCE[torch.float32])
    for _ in range(CHECKED):
        steps["channels_last"]()
    times = in_turns(steps, rounds)
    peer = times.pop("peer")
    ratios = {name: ratio(peer.wall, ours.wall) for name, ours in times.items()}
    row = {
        **asdict(case),
        "threads": threads,
        "rounds": rounds,
        "loss_differences": differences,
        "peer_seconds": float(np.median(peer.wall)),
        "ratios": {name: asdict(each) for name, each in ratios.items()},
        "median_of_paired_ratios": {
            name: float(np.median(peer.wall / ours.wall)) for name, ours in times.items()
        },
        "processor_time_ratios": {
            name: asdict(ratio(peer.processor, ours.processor)) for name, ours in times.items()
        },
    }
    return row, ratios


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One training step, ours and the peers'.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_training_step.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to see that it runs; judges nothing"
    )
    said = parser.parse_args(arguments)
    rounds = 2 if said.tiny else said.rounds
    load_before, before = load(), torch.get_num_threads()
    rows, estimates = [], {}
    cases = [replace(case, size=32, batch_size=4) if said.tiny else case for case in CASES]
    for threads, case in product(said.threads, cases):
        row, ratios = measure(case, threads, rounds)
        rows.append(row)
        for name, each in ratios.items():
            estimates[f"{case.model}, {threads} thread(s), {name}"] = each
            print(f"{case.model:10} / {case.peer:11} {threads} thread(s)  {name:13} {each}")
    torch.set_num_threads(before)
    record(
        said.out,
        rows,
        estimates,
        recipe={"optimizer": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
        | {"rounds": rounds, "floor": FLOOR, "compile": False},
        versions={"pytorchcv": version("pytorchcv")},
        load_before=load_before,
    )
    slow = [
        name for name, each in estimates.items() if "channels_last" in name and each.low < FLOOR
    ]
    for name in () if said.tiny else slow:
        print(f"below {FLOOR}: {name}", file=sys.stderr)
    return int(bool(slow) and not said.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
