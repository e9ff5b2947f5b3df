"""How long one waits for `plusx` to answer, and for `import plusx`.

    python benchmarks/startup.py

`plusx --help`, `models` and `describe resnet50` in fresh processes, in turns with a Python that
does nothing: the median on the wall is to be under COMMAND seconds, and none of HEAVY may be
loaded. In other fresh processes: what `import plusx` and its first use (create_model, then one
network) take once torch is there; the median is to be at most IMPORT seconds. A round that is not
counted goes first, so that files are in the disk's cache and modules are compiled to bytecode.

Writes results/benchmark_startup.json, and ends with status 1 where a limit is missed.
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


# without it every start would compile plusx anew, which no installation does
ENVIRONMENT = {key: said for key, said in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def answer(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)


def loaded(arguments: list[str]) -> list[str]:
    """The packages outside the standard library that a command has loaded at its end."""
    said = answer([sys.executable, "-c", LOADED, *arguments]).stderr
    names = json.loads(said.splitlines()[-1])
    return [name for name in names if name not in sys.stdlib_module_names and name[0] != "_"]


def commands(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Estimate]]:
    """A row for each command, and the medians of their seconds."""
    program = [str(PLUSX)] if PLUSX.exists() else [sys.executable, "-m", "plusx"]
    lines = {" ".join(["plusx", *said]): [*program, *said] for said in COMMANDS}
    lines["python"] = [sys.executable, "-c", "pass"]
    runs = {name: _answering(line) for name, line in lines.items()}
    in_turns(runs, 1)
    times = in_turns(runs, rounds)
    used = {" ".join(["plusx", *said]): loaded(said) for said in COMMANDS}
    rows = [_row(name, each, COMMAND) | {"loaded": used.get(name)} for name, each in times.items()]
    return rows, {name: median(each.wall) for name, each in times.items()}


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
    """What is wrong with a row; "" where nothing is."""
    if row["limit"] is not None and row["seconds"]["value"] > row["limit"]:
        return f"{row['name']} took {row['seconds']['value']:.3f} s, the limit is {row['limit']} s"
    if heavy := HEAVY & set(row.get("loaded") or ()):
        return f"{row['name']} loads {', '.join(sorted(heavy))}"
    return ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="How long plusx takes to answer.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_startup.json")
    said = parser.parse_args(arguments)
    load_before = load()
    rows, estimates = commands(said.rounds)
    import_rows, import_estimates = imports(said.rounds)
    rows, estimates = rows + import_rows, estimates | import_estimates
    for row, each in zip(rows, estimates.values(), strict=True):
        busy = row["processor_seconds"]["value"]
        print(f"{row['name']:24} {each} s, of the processor {busy:.3f} s")
    limits = {"command_seconds": COMMAND, "import_seconds": IMPORT, "rounds": said.rounds}
    record(said.out, rows, estimates, recipe=limits, versions={}, load_before=load_before)
    wrong = [why for row in rows if (why := missed(row))]
    for why in wrong:
        print(why, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
