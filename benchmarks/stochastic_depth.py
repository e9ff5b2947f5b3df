"""Training-step time of ResNet-110 with stochastic depth against constant depth.

    python benchmarks/stochastic_depth.py

Both networks have the same weights, loop and images. One drops its last block with probability 0.5
and the others linearly less often (Huang et al. 2016, section 3). A dropped block is not computed,
so 40.25 of 54 blocks run on average, and the ratio of the times should be close to that fraction. A
ratio is the time with stochastic depth over the time with constant depth; below 1 stochastic depth
is faster. A round is several steps of each, since the number of blocks varies from step to step.

Writes results/stochastic_depth.json. Exits with status 1 if the upper end of the interval is above
CEILING.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import RESULTS, SEED, Estimate, in_turns, load, ratio, record

import plusx
from plusx.study.blocks import block_positions
from plusx.train.optim import make_optimizer
from plusx.train.schedule import constant


CEILING = 0.85
MODELS = {"stochastic": "resnet110_sd", "constant": "resnet110"}
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
NAME = "stochastic depth / constant depth"


def training_data(batch_size: int, size: int) -> list[plusx.Batch]:
    """Random images: the time of a step does not depend on their content."""
    random = torch.Generator().manual_seed(SEED)
    return [
        plusx.Batch(
            torch.randn(batch_size, 3, size, size, generator=random),
            torch.randint(10, (batch_size,), generator=random),
        )
        for _ in range(4)
    ]


def contenders(
    batches: list[plusx.Batch], steps: int, block_counts: list[int]
) -> dict[str, Callable[[], object]]:
    """Both networks in plusx's loop; appends the blocks run per step to `block_counts`."""
    steppers: dict[str, Callable[[], object]] = {}
    for kind, name in MODELS.items():
        net = plusx.create_model(name, seed=SEED)
        task = plusx.prepare(plusx.Classify(net), device="cpu")
        optimizer = make_optimizer(task, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        state = plusx.State(task, optimizer, seed=SEED)
        reports = plusx.fit(state, cycle(batches), constant(RATE))
        blocks = [position.block for position in block_positions(net)]

        def turn(reports: Any = reports, blocks: Any = blocks, kind: str = kind) -> None:
            for _ in range(steps):
                for block in blocks:
                    block.zero_grad(set_to_none=True)
                next(reports)
                if kind == "stochastic":
                    block_counts.append(
                        sum(block.conv1.weight.grad is not None for block in blocks)
                    )

        steppers[kind] = turn
    return steppers


def check_equal(batch: plusx.Batch) -> None:
    """Raise ValueError if the networks differ in more than what is dropped."""
    nets = {way: plusx.create_model(name, seed=SEED).train() for way, name in MODELS.items()}
    for position in block_positions(nets["stochastic"]):
        position.block.drop = 0.0
    stochastic, steady = (nets[way](batch.inputs) for way in MODELS)
    if not torch.equal(stochastic, steady):
        raise ValueError("with drop rates of 0 the networks have different outputs")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="A step with stochastic and constant depth.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=3, help="of each network per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "stochastic_depth.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    rounds, size = (2, 8) if args.tiny else (args.rounds, 32)
    batch_size = 2 if args.tiny else args.batch_size
    load_before, before = load(), torch.get_num_threads()
    torch.set_num_threads(args.threads)
    block_counts: list[int] = []
    batches = training_data(batch_size, size)
    check_equal(batches[0])
    steps = contenders(batches, args.steps, block_counts)
    for step in steps.values():
        step()
    block_counts.clear()
    times = in_turns(steps, rounds)
    torch.set_num_threads(before)
    measured = ratio(times["stochastic"].wall, times["constant"].wall)
    blocks = 54
    row = {
        "model": MODELS["stochastic"],
        "peer": MODELS["constant"],
        "batch_size": batch_size,
        "size": size,
        "threads": args.threads,
        "rounds": rounds,
        "steps_a_round": args.steps,
        "constant_seconds": float(np.median(times["constant"].wall)) / args.steps,
        "ratio": asdict(measured),
        "processor_time_ratio": asdict(
            ratio(times["stochastic"].processor, times["constant"].processor)
        ),
        "expected_share": 1 - (blocks + 1) / blocks / 4,
        "counted_share": float(np.mean(block_counts)) / blocks,
    }
    estimates: dict[str, Estimate] = {NAME: measured}
    print(f"{NAME}: {measured}; blocks that ran: {row['counted_share']:.3f} of all")
    record(
        args.out,
        [row],
        estimates,
        recipe={"optimizer": "sgd", "lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
        | {"rounds": rounds, "ceiling": CEILING, "compile": False},
        versions={},
        load_before=load_before,
    )
    if measured.high > CEILING and not args.tiny:
        print(f"above {CEILING}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
