"""Two concurrent runs with one thread each against single runs with two threads.

    python benchmarks/processes.py [--rounds 7] [--out results/processes.json]

Each way makes the four runs of `plusx compare digits` with one seed and two epochs, from an empty
folder to the report, in alternating order. The ratio is that of the times; its interval is a
bootstrap over rounds.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from plusx import store
from plusx.recipe import load_recipe
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.study.runner import compare


WAYS = {"two processes": (2, 1), "two threads": (1, 2)}  # concurrent runs, threads per run


def seconds(jobs: int, threads: int) -> float:
    overrides = ["epochs=2", "compare.seeds=[0]", f"device.threads={threads}"]
    recipe = load_recipe("digits", overrides)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        began = time.perf_counter()
        compare(recipe, Path(folder) / "out", jobs=jobs, progress=nowhere)
        return time.perf_counter() - began


def interval(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of the rounds' ratios."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="processes against threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pairs = []
    for number in range(args.rounds):
        order = list(WAYS)[:: 1 - 2 * (number % 2)]  # the first alternates
        took = {name: seconds(*WAYS[name]) for name in order}
        pairs.append((took["two processes"], took["two threads"]))
        print(", ".join(f"{name} {value:.1f} s" for name, value in took.items()), file=sys.stderr)
    ratios = [threads / processes for processes, threads in pairs]
    low, high = interval(ratios)
    ratio = statistics.median(ratios)
    print(f"two processes are {ratio:.2f} times as fast (95 % interval {low:.2f} to {high:.2f})")
    if args.out:
        machine = environment(torch.device("cpu"))
        versions = ("plusx", "python", "torch", "numpy")
        result = {
            "value": ratio,
            "spread": [low, high],
            "ratios": ratios,
            "seconds": {name: [pair[i] for pair in pairs] for i, name in enumerate(WAYS)},
            "seeds": [0],
            "command": shlex.join(["python", "benchmarks/processes.py", *sys.argv[1:]]),
            "recipe": "digits epochs=2 compare.seeds=[0]",
            "versions": {name: machine.pop(name) for name in versions},
            "machine": machine,
            "date": now(),
        }
        store.write_json(args.out, result)


if __name__ == "__main__":
    main()
