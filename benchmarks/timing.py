"""Helpers of the benchmarks: alternating timing, bootstrap intervals, and writing results.

A round runs every contender once, and a different contender starts each round, so that other load
on the machine affects all alike. The bootstrap resamples rounds, which keeps the times of a round
paired. The results are wall-clock times; processor time is recorded as well, since other processes
may use the machine.
"""

import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plusx import store
from plusx.run.environment import environment
from plusx.run.folder import now


SEED = 0
RESAMPLES = 10_000
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds of one contender, arrays of shape (rounds,): wall-clock and processor time."""

    wall: np.ndarray
    processor: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def in_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Run every contender once per round; return the seconds of each in each round."""
    names = list(contenders)
    wall = {name: np.zeros(rounds) for name in names}
    processor = {name: np.zeros(rounds) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            busy, began = processor_seconds(), time.perf_counter()
            contenders[name]()
            wall[name][number] = time.perf_counter() - began
            processor[name][number] = processor_seconds() - busy
    return {name: Times(wall[name], processor[name]) for name in names}


def processor_seconds() -> float:
    """Processor time of this process, its threads and the child processes it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratio(peer: np.ndarray, ours: np.ndarray) -> Estimate:
    """The peer's median time over ours, from seconds of shape (rounds,); above 1 we are faster.

    The interval resamples rounds, each with both of its times.
    """
    resampled = _rounds(len(peer))
    medians = np.median(peer[resampled], axis=1) / np.median(ours[resampled], axis=1)
    return _estimate(np.median(peer) / np.median(ours), medians)


def median(seconds: np.ndarray) -> Estimate:
    """The median over the rounds, from seconds of shape (rounds,)."""
    return _estimate(np.median(seconds), np.median(seconds[_rounds(len(seconds))], axis=1))


def _rounds(count: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(count, size=(RESAMPLES, count))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def record(
    path: Path,
    rows: list[dict[str, Any]],
    estimates: Mapping[str, Estimate],
    *,
    recipe: Mapping[str, Any],
    versions: Mapping[str, str],
    load_before: float,
) -> None:
    """Write a result: the estimates by name, the rows they come from, and the environment.

    `versions`: of the peer libraries, which are not in plusx's own environment record. Absolute
    paths in the command are reduced to their last part.
    """
    arguments = [Path(each).name if os.path.isabs(each) else each for each in sys.argv[1:]]
    machine = environment(torch.device("cpu"))
    packages = ("plusx", "python", "torch", "torchvision", "numpy")
    del machine["threads"]  # each row has its own number
    busy = load_before > machine["cores"] + 0.5
    store.write_json(
        path,
        {
            "value": {name: each.value for name, each in estimates.items()},
            "spread": {name: [each.low, each.high] for name, each in estimates.items()},
            "rows": rows,
            "seeds": [SEED],
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
            "recipe": dict(recipe),
            "versions": {name: machine[name] for name in packages} | dict(versions),
            "machine": {
                **{name: value for name, value in machine.items() if name not in packages},
                "load_before": load_before,
                "load_after": load(),
                "note": "other processes were busy while this was measured" if busy else "",
            },
            "date": now(),
        },
    )
