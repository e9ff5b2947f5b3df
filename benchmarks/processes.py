"""Two runs at a time with one thread each, against one run at a time with two threads.

    python benchmarks/processes.py [--rounds 7] [--out results/benchmark_processes.json]

Both make the four runs of `plusx compare digits` with one seed and two epochs, from an empty folder
to the report, in turns. Results do not depend on the number of processes: only the time differs.
There is no target.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from timing import RESULTS, in_turns, load, median, ratio, record

from plusx.recipe import load_recipe
from plusx.study.runner import compare


OVERRIDES = ["epochs=2", "compare.seeds=[0]"]
CONTENDERS = {"two processes": (2, 1), "two threads": (1, 2)}  # runs at a time, threads of a run


def make_runs(jobs: int, threads: int) -> None:
    """Run the comparison in a temporary folder."""
    recipe = load_recipe("digits", [*OVERRIDES, f"device.threads={threads}"])
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        compare(recipe, Path(folder) / "out", jobs=jobs, progress=nowhere)


def main() -> None:
    parser = argparse.ArgumentParser(description="Processes against threads.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_processes.json")
    args = parser.parse_args()
    load_before = load()
    contenders: dict[str, Callable[[], object]] = {
        name: partial(make_runs, *setting) for name, setting in CONTENDERS.items()
    }
    times = {name: seconds.wall for name, seconds in in_turns(contenders, args.rounds).items()}
    speed_up = ratio(times["two threads"], times["two processes"])
    print(f"two processes are {speed_up} times as fast as two threads")
    rows = [
        {"name": name, "jobs": jobs, "threads": threads, "seconds": asdict(median(times[name]))}
        for name, (jobs, threads) in CONTENDERS.items()
    ]
    record(
        args.out,
        rows,
        {"two processes": speed_up},
        recipe={"name": "digits", "overrides": OVERRIDES, "rounds": args.rounds},
        versions={},
        load_before=load_before,
    )


if __name__ == "__main__":
    main()
