"""The time of one training step against torchvision's, timm's and pytorchcv's networks.

    pip install --requirement benchmarks/requirements.txt
    python benchmarks/training_step.py                       (about five minutes on two cores)
    python benchmarks/training_step.py --compile both        (also the peers, compiled)

A step is forward, cross-entropy, backward and SGD with momentum and weight decay. A peer is the
library's network in the plain loop of PyTorch's tutorials, once with default settings ("default")
and once with weights and images in channels_last, the setting that PyTorch recommends for CPUs.
Ours is the default of `plusx train`: `prepare`, `make_optimizer`, `fit`. The same rounds time ours
compiled (`device.compile = true`) and, with `--compile both`, the peers compiled.

All train on the same images from the same weights. Before anything is timed, their losses have to
agree within TOLERANCE: over STEPS steps in float64 on small images, and over ROUNDED steps in
float32 on the timed images. (A different summation order changes the rounding, and training on
noise amplifies the difference a hundredfold in a few steps, also between the two memory formats of
one peer.) A ratio is the peer's time over ours: above 1 we are faster.

Writes results/benchmark_training_step.json. Exits with status 1 if a ratio is below its target.

pytorchcv's ResNet-20 has projection shortcuts, as our resnet20_b.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn
from torch.nn import functional as F

import plusx
from plusx.grammar.arithmetic import measure as measured
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant


# the smallest ratios required: the peer's time, in one of its settings, over ours
TARGETS = {
    "default / ours": 1.20,
    "channels_last / ours": 1.00,
    "default / ours compiled": 1.35,
}
STEPS = 20  # losses compared in float64
ROUNDED = 3  # and in float32; they also warm up
TINY = 2  # rounds and steps with --tiny
TOLERANCE = 1e-4  # relative
RATE, MOMENTUM, DECAY = 0.001, 0.9, 1e-4
BATCHES = 8  # different ones, cycled

Step = Callable[[], float]  # trains on the next batch and returns its loss


@dataclass(frozen=True)
class Case:
    """A network of ours, its equivalents in the peer libraries, and the data."""

    model: str
    peers: tuple[str, ...]
    size: int
    batch_size: int
    classes: int


CASES = (
    Case("resnet18", ("torchvision", "timm"), 128, 8, 1000),
    Case("resnet20_b", ("pytorchcv",), 32, 64, 10),
)


def peer_network(peer: str) -> nn.Module:
    """The peer's network with its own initial weights, from a fixed seed."""
    torch.manual_seed(SEED)
    net: nn.Module
    match peer:
        case "torchvision":
            import torchvision

            net = torchvision.models.resnet18()
        case "timm":
            import timm

            net = timm.create_model("resnet18")
        case _:
            from pytorchcv.model_provider import get_model

            net = get_model("resnet20_cifar10")
    return net


def with_weights(net: nn.Module, of: nn.Module) -> nn.Module:
    """The network with the weights of another, whose tensors come in the same order."""
    net.load_state_dict(dict(zip(net.state_dict(), of.state_dict().values(), strict=True)))
    return net


def training_data(case: Case, precision: torch.dtype) -> list[plusx.Batch]:
    """Random images: the time of a step does not depend on their content."""
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
    """The training loop of PyTorch's tutorials."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    upcoming: Iterator[plusx.Batch] = cycle(batches)

    def step() -> float:
        batch = next(upcoming)
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(net(batch.inputs), batch.known_targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def plain_channels_last(net: nn.Module, batches: list[plusx.Batch]) -> Step:
    """The same loop in channels_last, as in PyTorch's tutorial."""
    last = torch.channels_last
    batches = [replace(batch, inputs=batch.inputs.to(memory_format=last)) for batch in batches]
    return plain_loop(net.to(memory_format=last), batches)


def plusx_loop(net: nn.Module, batches: list[plusx.Batch], compiled: bool = False) -> Step:
    """The training loop of plusx."""
    task = plusx.prepare(plusx.Classify(net), device="cpu", compile=compiled)
    optimizer = make_optimizer(task, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    state = plusx.State(task, optimizer, seed=SEED)
    reports = plusx.fit(state, cycle(batches), constant(RATE))
    return lambda: next(reports).loss


def contenders(
    case: Case, precision: torch.dtype = torch.float32, compiled: str = "none"
) -> dict[str, Step]:
    """The peers and ours, with equal weights, before their first step."""
    batches = training_data(case, precision)
    weights = peer_network(case.peers[0]).to(precision)

    def ours() -> nn.Module:
        net: nn.Module = plusx.create_model(case.model)
        return with_weights(net.to(precision), weights)

    steps: dict[str, Step] = {}
    for peer in case.peers:
        for setting, loop in (("default", plain_loop), ("channels_last", plain_channels_last)):
            net = with_weights(peer_network(peer).to(precision), weights)
            steps[f"{peer} {setting}"] = loop(net, batches)
        if compiled == "both":
            net = with_weights(peer_network(peer), weights)
            net.compile()
            steps[f"{peer} compiled"] = plain_channels_last(net, batches)
    steps["ours"] = plusx_loop(ours(), batches)
    if compiled != "none":
        steps["ours compiled"] = plusx_loop(ours(), batches, compiled=True)
    return steps


def check_equal(steps: Mapping[str, Step], number: int) -> tuple[float, dict[str, float]]:
    """Take the first steps of all contenders and compare their losses with those of the first.

    Returns the largest relative difference and the seconds of each one's very first step. Raises
    ValueError if the difference is above TOLERANCE.
    """
    losses: dict[str, list[float]] = {}
    seconds = {}
    for name, step in steps.items():
        start = time.perf_counter()
        losses[name] = [step()]
        seconds[name] = time.perf_counter() - start
        losses[name] += [step() for _ in range(number - 1)]
    first, *_ = losses
    expected = np.array(losses[first])
    differences = {
        name: float(np.max(np.abs(np.array(values) / expected - 1)))
        for name, values in losses.items()
    }
    furthest = max(differences, key=lambda name: differences[name])
    if not differences[furthest] <= TOLERANCE:
        raise ValueError(
            f"{furthest} is another network than {first}: {losses[furthest]}, not {losses[first]}"
        )
    return differences[furthest], seconds


def rates(case: Case, seconds: float) -> float:
    """Floating-point operations per second: 2 per multiply-add, and 3 forward passes per step."""
    spec = plusx.find(case.model)
    cost = measured(replace(spec, size=case.size))
    return 6 * cost.multiply_adds * case.batch_size / seconds


def machine_rates() -> dict[str, float]:
    """The peak rates of this machine with the current number of threads: a convolution and a
    copy."""
    x = torch.randn(8, 128, 28, 28).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    operations = 2 * x.numel() * weight[0].numel()
    source = torch.zeros(32_000_000)
    target = torch.empty_like(source)
    times = in_turns(
        {
            "convolution": lambda: F.conv2d(x, weight, padding=1),
            "copy": lambda: target.copy_(source),
        },
        15,
    )
    return {
        "convolution_flops": operations / float(np.min(times["convolution"].wall)),
        "copied_bytes": 8 * source.numel() / float(np.min(times["copy"].wall)),
    }


def measure(
    case: Case, threads: int, rounds: int, compiled: str, in_float64: float
) -> list[dict[str, Any]]:
    """The rows of the result, one for each peer."""
    torch.set_num_threads(threads)
    steps = contenders(case, compiled=compiled)
    in_float32, first_seconds = check_equal(steps, TINY if rounds == TINY else ROUNDED)
    times = in_turns(steps, rounds)
    peak_rates = machine_rates()
    rows = []
    for peer in case.peers:
        pairs = {
            f"{setting} / {ours}": (times[f"{peer} {setting}"], times[ours])
            for ours in ("ours", "ours compiled")
            for setting in ("default", "channels_last", "compiled")
            if ours in times and f"{peer} {setting}" in times
        }
        ratios = {name: ratio(other.wall, ours.wall) for name, (other, ours) in pairs.items()}
        rows.append(
            {
                "model": case.model,
                "peer": peer,
                "size": case.size,
                "batch_size": case.batch_size,
                "threads": threads,
                "rounds": rounds,
                "loss_differences": {"float64": in_float64, "float32": in_float32},
                "first_step_seconds": {
                    name: seconds for name, seconds in first_seconds.items() if "compiled" in name
                },
                "seconds": {
                    name: float(np.median(taken.wall))
                    for name, taken in times.items()
                    if name.startswith((peer, "ours"))
                },
                "flops": {
                    name: rates(case, float(np.median(taken.wall)))
                    for name, taken in times.items()
                    if name.startswith((peer, "ours"))
                },
                "machine_at_best": peak_rates,
                "ratios": {name: asdict(taken) for name, taken in ratios.items()},
                "targets": {name: TARGETS[name] for name in ratios if name in TARGETS},
                "missed": [
                    name for name, taken in ratios.items() if taken.value < TARGETS.get(name, 0)
                ],
                "processor_time_ratios": {
                    name: asdict(ratio(other.processor, ours.processor))
                    for name, (other, ours) in pairs.items()
                },
            }
        )
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="One training step, ours and the peers'.")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", default=[case.model for case in CASES])
    parser.add_argument("--size", type=int, help="of the images, instead of the cases' own")
    parser.add_argument("--batch-size", type=int, help="instead of the cases' own")
    parser.add_argument("--compile", choices=("none", "ours", "both"), default="ours")
    parser.add_argument(
        "--compile-threads",
        type=int,
        nargs="*",
        default=[1],
        help="numbers of threads to compile for",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_training_step.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    rounds = TINY if args.tiny else args.rounds
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = (
        "1"  # else only the first compilation is timed
    )
    load_before, before = load(), torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    estimates: dict[str, Estimate] = {}
    for case in CASES:
        if case.model not in args.models:
            continue
        case = replace(
            case, size=args.size or case.size, batch_size=args.batch_size or case.batch_size
        )
        if args.tiny:
            case = replace(case, size=min(case.size, 64), batch_size=8)
        torch.set_num_threads(max(args.threads))
        small = replace(case, size=32, batch_size=8)
        in_float64, _ = check_equal(contenders(small, torch.float64), TINY if args.tiny else STEPS)
        for threads in args.threads:
            compiled = args.compile if threads in args.compile_threads and not args.tiny else "none"
            for row in measure(case, threads, rounds, compiled, in_float64):
                rows.append(row)
                for name, values in row["ratios"].items():
                    estimate = Estimate(**values)
                    key = f"{case.model}, {threads} thread(s), {row['peer']} {name}"
                    estimates[key] = estimate
                    target = TARGETS.get(name)
                    note = "" if target is None else f"  asked: {target:.2f}"
                    note += "  MISSED" if name in row["missed"] and not args.tiny else ""
                    print(f"{key:66} {estimate}{note}")
    torch.set_num_threads(before)
    record(
        args.out,
        rows,
        estimates,
        recipe={"optimizer": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
        | {"rounds": rounds, "targets": TARGETS, "tolerance": TOLERANCE}
        | {"steps_compared": {"float64": STEPS, "float32": ROUNDED}},
        versions={row["peer"]: version(row["peer"]) for row in rows},
        load_before=load_before,
    )
    return int(any(row["missed"] for row in rows) and not args.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
