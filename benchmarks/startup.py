"""Start-up time of the `plusx` command and of `import plusx`.

    python benchmarks/startup.py

`plusx --help`, `models` and `describe resnet50` run in fresh processes, alternating with a Python
that does nothing. Their median wall-clock time has to be below COMMAND seconds, and no package of
HEAVY may be loaded. Other fresh processes time `import plusx` and its first use (create_model, then
one network) after torch is imported; that median has to be at most IMPORT seconds. A warm-up round
fills the disk cache and compiles the bytecode.

Writes results/benchmark_startup.json and exits with status 1 if a limit is exceeded.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, Estimate, Times, in_turns, load, median, record


COMMAND, IMPORT = 0.3, 0.1  # seconds
HEAVY = {"torch", "torchvision", "pydantic", "numpy", "sklearn", "matplotlib", "PIL"}
COMMANDS = (["--help"], ["models"], ["describe", "resnet50"])
PLUSX = Path(sys.executable).with_name("plusx")

LOADED = """
import json, sys
from plusx.cli import run
code = run(sys.argv[1:])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
raise SystemExit(code)
"""
OVER_TORCH = """
import json, time
began = time.perf_counter(); busy = time.process_time()
import torch
torch_there, torch_busy = time.perf_counter(), time.process_time()
import plusx
plusx.create_model
imported, imported_busy = time.perf_counter(), time.process_time()
plusx.create_model("resnet20")
built, built_busy = time.perf_counter(), time.process_time()
print(json.dumps({
    "torch": [torch_there - began, torch_busy - busy],
    "import": [imported - torch_there, imported_busy - torch_busy],
    "network": [built - imported, built_busy - imported_busy],
}))
"""


# without bytecode files every start would compile plusx, which no installation does
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def answer(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)


def loaded(arguments: list[str]) -> list[str]:
    """The third-party packages that are loaded when a command ends."""
    output = answer([sys.executable, "-c", LOADED, *arguments]).stderr
    names = json.loads(output.splitlines()[-1])
    return [name for name in names if name not in sys.stdlib_module_names and name[0] != "_"]


def commands(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Estimate]]:
    """A row for each command, and the medians of their seconds."""
    program = [str(PLUSX)] if PLUSX.exists() else [sys.executable, "-m", "plusx"]
    lines = {" ".join(["plusx", *arguments]): [*program, *arguments] for arguments in COMMANDS}
    lines["python"] = [sys.executable, "-c", "pass"]
    runs = {name: _answering(line) for name, line in lines.items()}
    in_turns(runs, 1)
    times = in_turns(runs, rounds)
    used = {" ".join(["plusx", *arguments]): loaded(arguments) for arguments in COMMANDS}
    rows = [
        _row(name, taken, COMMAND) | {"loaded": used.get(name)} for name, taken in times.items()
    ]
    return rows, {name: median(taken.wall) for name, taken in times.items()}


def _answering(line: list[str]) -> Callable[[], object]:
    return lambda: answer(line)


def imports(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Estimate]]:
    """A row for torch, for what plusx adds to it, and for building a network after that."""
    command = [sys.executable, "-c", OVER_TORCH]
    answer(command)
    answers = [json.loads(answer(command).stdout) for _ in range(rounds)]
    limits = {"torch": None, "import": IMPORT, "network": None}
    names = {
        "torch": "import torch",
        "import": "import plusx, over torch",
        "network": "first network",
    }
    rows, medians = [], {}
    for key, limit in limits.items():
        wall, processor = np.array([each[key] for each in answers]).T
        rows.append(_row(names[key], Times(wall, processor), limit))
        medians[names[key]] = median(wall)
    return rows, medians


def _row(name: str, times: Times, limit: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "limit": None if name == "python" else limit,
        "rounds": len(times.wall),
        "seconds": asdict(median(times.wall)),
        "fastest": float(times.wall.min()),
        "processor_seconds": asdict(median(times.processor)),
    }


def missed(row: dict[str, Any]) -> str:
    """Why a row misses its limits; "" if it does not."""
    if row["limit"] is not None and row["seconds"]["value"] > row["limit"]:
        return f"{row['name']} took {row['seconds']['value']:.3f} s, the limit is {row['limit']} s"
    if heavy := HEAVY & set(row.get("loaded") or ()):
        return f"{row['name']} loads {', '.join(sorted(heavy))}"
    return ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="How long plusx takes to answer.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_startup.json")
    args = parser.parse_args(arguments)
    load_before = load()
    rows, estimates = commands(args.rounds)
    import_rows, import_estimates = imports(args.rounds)
    rows, estimates = rows + import_rows, estimates | import_estimates
    for row, estimate in zip(rows, estimates.values(), strict=True):
        busy = row["processor_seconds"]["value"]
        print(f"{row['name']:24} {estimate} s, of the processor {busy:.3f} s")
    limits = {"command_seconds": COMMAND, "import_seconds": IMPORT, "rounds": args.rounds}
    record(args.out, rows, estimates, recipe=limits, versions={}, load_before=load_before)
    failures = [failure for row in rows if (failure := missed(row))]
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
