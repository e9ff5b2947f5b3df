"""Memory of a training step under every plan: counted, predicted, and measured in a process."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plusx import store
from plusx.bench.bench import random_batch, saved_bytes
from plusx.errors import UserError
from plusx.grammar import memory as arithmetic
from plusx.grammar.arithmetic import measure
from plusx.grammar.memory import PLANS
from plusx.grammar.reversible import reversible_bytes
from plusx.grammar.spec import Net
from plusx.memory import save_memory
from plusx.models import create_model
from plusx.report.figures import line, lines_figure
from plusx.report.result import result_page
from plusx.run.environment import environment
from plusx.run.folder import now
from plusx.tasks.classify import Classify
from plusx.zoo import External, find, names
from plusx.zoo.memory_report import family


# default networks: residual and reversible, of growing depth, small enough for any machine
DEFAULT_NETWORKS = ("resnet20", "resnet56", "resnet110", "revnet38", "revnet110")
RESULT, PAGE = "memory.json", "memory.html"

COLUMNS = [
    {"key": "depth", "title": "Layers", "unit": "", "kind": "count"},
    {"key": "plan", "title": "Plan", "unit": "", "kind": "text"},
    {"key": "counted", "title": "Held", "unit": "MB per image", "kind": "number"},
    {"key": "predicted", "title": "By arithmetic", "unit": "MB per image", "kind": "number"},
    {"key": "share", "title": "Of keep", "unit": "", "kind": "share"},
    {"key": "resident", "title": "Resident", "unit": "MB per batch", "kind": "number"},
]

NOTE = (
    "Held is the peak memory for the backward pass of one image, counted in a training "
    "step, without parameters, gradients and the optimizer. By arithmetic is the same from "
    "the spec alone. Resident is the memory that a process gains in a step of the whole batch, "
    "including allocations of libraries."
)

Progress = Callable[[str], None]
Row = Mapping[str, Any]


def memory(
    requested: Sequence[str],
    out: str | Path | None = None,
    *,
    families: bool = False,
    size: int | None = None,
    batch: int = 8,
    resident: bool = True,
    command: str = "",
    progress: Progress = print,
) -> dict[str, Any]:
    """Count what a training step saves for the backward pass, under every plan.

    With `out`, memory.json and memory.html are written there. requested: names of networks and
    patterns of names; with `families` each stands for all depths of its family. size: pixels per
    side (default: each network's own size). batch: images per batch. resident: also measure the
    memory that a new process gains. progress: called with a line of text for every row. Raises
    UserError for an invalid name or number, and RuntimeError if a measuring process failed.
    """
    if batch < 2:
        raise UserError(f"batch = {batch}: it must be at least 2, for batch norm")
    rows = []
    for name in _names(requested, families):
        for plan in _plans(name):
            progress(f"{name}, {plan}")
            rows.append(_row(name, plan, size, batch, resident))
    for row in rows:
        full = [other for other in rows if other["name"] == row["name"] and other["plan"] == "keep"]
        base = full[0]["saved_bytes"] if full else None
        row["share_of_keep"] = None if base is None else row["saved_bytes"] / base
    result = {
        "kind": "memory",
        "rows": rows,
        "batch": batch,
        "size": size,
        "finding": _finding(rows),
        "figures": _figures(rows),
        "machine": environment(torch.device("cpu")),
        "command": command,
        "date": now(),
    }
    if out is not None:
        store.make_folder(Path(out))
        store.write_json(Path(out) / RESULT, result)
        store.write_text(Path(out) / PAGE, memory_page(result))
    return result


def _names(requested: Sequence[str], families: bool) -> list[str]:
    chosen: list[str] = []
    for pattern in requested or DEFAULT_NETWORKS:
        matching = names(pattern) if any(sign in pattern for sign in "*?[") else [pattern]
        if not matching:
            raise UserError(f"no network matches {pattern!r}")
        for name in matching:
            find(name)
            chosen += family(name) if families else [name]
    return list(dict.fromkeys(chosen))


def _plans(name: str) -> tuple[str, ...]:
    spec = find(name)
    if isinstance(spec, Net):
        return PLANS
    return ("keep",) if spec.reversible is None else ("keep", "reversible")


def _row(name: str, plan: str, size: int | None, batch: int, resident: bool) -> dict[str, Any]:
    spec = find(name)
    net = _built(name, plan, size)
    counted = saved_bytes(Classify(net), random_batch(spec, batch, size))
    predicted = _predicted(spec, net, plan, batch)
    return {
        "name": name,
        "family": re.sub(r"\d+", "", name, count=1),
        "depth": spec.depth if isinstance(spec, External) else measure(spec).depth,
        "plan": plan,
        "saved_bytes": counted,
        "saved_bytes_per_image": counted / batch,
        "predicted_bytes_per_image": None if predicted is None else predicted / batch,
        "resident_bytes": _resident_bytes(name, plan, size, batch) if resident else None,
    }


def _built(name: str, plan: str, size: int | None) -> nn.Module:
    """Return the network in training mode, under the plan."""
    spec = find(name)
    if size is not None and isinstance(spec, External):
        raise UserError(f"size = {size}: {name} is an external module of a size of its own")
    net: nn.Module = create_model(
        replace(spec, size=size) if size is not None and isinstance(spec, Net) else name, seed=0
    )
    if isinstance(spec, External):
        if spec.reversible is not None:
            net.reverses = plan == "reversible"  # type: ignore[assignment]
        return net.train()
    return save_memory(net, plan).train()


def _predicted(spec: Net | External, net: nn.Module, plan: str, batch: int) -> int | None:
    """Return the bytes by arithmetic; None for an external module that is not reversible."""
    if isinstance(spec, External):
        if spec.reversible is None:
            return None
        return reversible_bytes(spec.reversible, batch, reverses=plan == "reversible")
    spec_under_plan = net.spec
    assert isinstance(spec_under_plan, Net)
    return arithmetic.saved_bytes(spec_under_plan, PLANS[PLANS.index(plan)], batch)


def _resident_bytes(name: str, plan: str, size: int | None, batch: int) -> int:
    """Return the bytes that a new process gains in a training step."""
    arguments = json.dumps([name, plan, size, batch])
    process = subprocess.run(
        [sys.executable, "-m", "plusx.bench.memory", arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    if process.returncode:
        error_line = process.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{name}, {plan}: the measuring process failed: {error_line[0]}")
    return int(process.stdout)


def peak_memory_increase(name: str, plan: str, size: int | None, batch: int) -> int:
    """Return the bytes that the memory of this process increases by in a training step. A small
    step is run first, so that one-time allocations of libraries do not count."""
    net, spec = _built(name, plan, size), find(name)
    task = Classify(net)
    task(random_batch(spec, 2, size)).backward()
    data = random_batch(spec, batch, size)
    clear_refs = Path("/proc/self/clear_refs")
    clear_refs.write_text("5", encoding="ascii")  # resets VmHWM
    resident_before = _process_memory("VmRSS")
    task(data).backward()
    return max(_process_memory("VmHWM") - resident_before, 0)


def _process_memory(key: str) -> int:
    """Return a memory value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kilobytes) * 1024


def memory_page(result: Mapping[str, Any]) -> str:
    """Return the HTML page of a memory.json."""
    return result_page(
        {
            **result,
            "kind": "bench memory",
            "title": "Memory of training",
            "question": "Counted in one training step of every network under every plan, of "
            f"{result['batch']} images.",
            "columns": COLUMNS,
            "rows": [flat(row) for row in result["rows"]],
            "notes": [NOTE],
        }
    )


def flat(row: Row) -> dict[str, Any]:
    """Return a row with one plain value per column."""
    return {
        "name": row["name"],
        "depth": row["depth"],
        "plan": row["plan"],
        "counted": row["saved_bytes_per_image"] / 1e6,
        "predicted": _megabytes(row["predicted_bytes_per_image"]),
        "share": row["share_of_keep"],
        "resident": _megabytes(row["resident_bytes"]),
    }


def _megabytes(count: int | float | None) -> float | None:
    return None if count is None else count / 1e6


def _figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a line over depth for each family of networks and plan."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["depth"]):
        groups.setdefault(f"{row['family']} {row['plan']}", []).append(row)

    def lines(key: str, suffix: str = "") -> list[dict[str, Any]]:
        all_lines = [
            line(
                f"{name}{suffix}",
                [row["depth"] for row in members],
                [_megabytes(row[key]) for row in members],
                dashed=bool(suffix),
            )
            for name, members in groups.items()
        ]
        return [candidate for candidate in all_lines if candidate["x"]]

    layers, megabytes = {"title": "layers", "scale": "linear"}, {"title": "MB", "scale": "log"}
    held = lines("saved_bytes_per_image") + lines("predicted_bytes_per_image", ", by arithmetic")
    resident = lines("resident_bytes")
    figures = [
        lines_figure(
            "Memory per image in training",
            "Peak memory for the backward pass; one line per plan, dashed by arithmetic.",
            held,
            x=layers,
            y=megabytes,
        )
    ]
    if resident:
        figures.append(
            lines_figure(
                "Resident memory of the process",
                "Increase in a step of the whole batch.",
                resident,
                x=layers,
                y=megabytes,
            )
        )
    return figures


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    """Name the plan that saves most in one sentence."""
    other_plans = [
        row for row in rows if row["share_of_keep"] is not None and row["plan"] != "keep"
    ]
    if not other_plans:
        row = max(rows, key=lambda row: row["saved_bytes_per_image"])
        return f"{row['name']} saves {row['saved_bytes_per_image'] / 1e6:.3g} MB per image."
    best = min(other_plans, key=lambda row: row["share_of_keep"])
    return (
        f"{best['name']} under the plan {best['plan']} holds {best['share_of_keep']:.1%} of "
        "what it holds without a plan."
    )


if __name__ == "__main__":
    print(peak_memory_increase(*json.loads(sys.argv[1])))
