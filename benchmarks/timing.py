"""What benchmarks have in common: turns taken in one process, intervals, and the record.

A round is every contender once, and who begins it rotates, so that whatever else the machine does
meets all of them alike. Rounds, not single times, are drawn again for an interval, so that it keeps
that pairing. The claims are of the clock on the wall; processor time is kept beside it as a second
opinion from a machine that others use.
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
DRAWS = 10_000
RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, eq=False)
class Times:
    """Seconds of one contender, a number a round: on the wall, and of the processor."""

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
    """Run every contender once a round, and give the seconds that each took in each round."""
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
    """Of this process, with its threads, and of the processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def ratio(peer: np.ndarray, ours: np.ndarray) -> Estimate:
    """The peer's median over our median, from the seconds (rounds,) of both: above 1 we are faster.

    The interval draws rounds, each with both of its times.
    """
    drawn = _rounds(len(peer))
    medians = np.median(peer[drawn], axis=1) / np.median(ours[drawn], axis=1)
    return _estimate(np.median(peer) / np.median(ours), medians)


def median(seconds: np.ndarray) -> Estimate:
    """The median of the rounds (rounds,)."""
    return _estimate(np.median(seconds), np.median(seconds[_rounds(len(seconds))], axis=1))


def _rounds(count: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(count, size=(DRAWS, count))


def _estimate(value: float, drawn: np.ndarray) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def load() -> float:
    """How many processes wanted a processor, on average over the last minute."""
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
    """Write a result: the estimates by name, what is behind them, and where it was measured.

    versions: of the libraries measured against that are no part of plusx's own environment.
    Of paths that only this machine has the command keeps the last part.
    """
    said = [Path(each).name if os.path.isabs(each) else each for each in sys.argv[1:]]
    surroundings = environment(torch.device("cpu"))
    own = ("plusx", "python", "torch", "torchvision", "numpy")
    del surroundings["threads"]  # said in each row
    busy = load_before > surroundings["cores"] + 0.5
    store.write_json(
        path,
        {
            "value": {name: each.value for name, each in estimates.items()},
            "spread": {name: [each.low, each.high] for name, each in estimates.items()},
            "rows": rows,
            "seeds": [SEED],
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *said]),
            "recipe": dict(recipe),
            "versions": {name: surroundings[name] for name in own} | dict(versions),
            "machine": {
                **{name: said for name, said in surroundings.items() if name not in own},
                "load_before": load_before,
                "load_after": load(),
                "note": "other processes were busy while this was measured" if busy else "",
            },
            "date": now(),
        },
    )
