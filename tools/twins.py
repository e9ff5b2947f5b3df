"""What recipes with a task of their own reach, the residual network beside its plain twin."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx.report.metrics import metric


RESULTS = Path(__file__).parents[1] / "results"

GROUPS: dict[str, tuple[str, ...]] = {
    "seeing": (
        "camvid-segment",
        "membranes-segment",
        "blood-cells-detect",
        "camvid-detect",
        "cells-mask",
    ),
    "medical": ("volumes-segment", "volumes-slices"),
    "faces": ("faces-verify",),
    "transfer": ("mosaic-labels", "bands-satellite", "bands-visible"),
}
GROUPS["all"] = tuple(name for group in GROUPS.values() for name in group)


def table(group: str) -> str:
    """The recipes of a group. A recipe without a file under results/ is named beneath."""
    head = "| recipe | metric | plain twin | residual | difference | seeds | images | training |"
    lines, missing = [head, "|---|---|---:|---:|---:|---:|---:|---:|"], []
    where: dict[str, list[str]] = {}
    for name in GROUPS[group]:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            missing.append(f"`python tools/measure.py {name}`")
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        lines.append(_row(found))
        where.setdefault(_where(found), []).append(f"`{name}`")
    usual = max(where, key=lambda each: len(where[each]), default="")
    others = [f"{', '.join(names)}: {each}" for each, names in where.items() if each != usual]
    end = "Training is the time of one run."
    said = ["\n".join(lines), " ".join([f"{usual}.", *(f"{each}." for each in others), end])]
    said = said if where else []
    if missing:
        said.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(said)


def _row(found: Mapping[str, Any]) -> str:
    key = found["metrics"][0]
    rows = {row["name"].startswith("plain"): row for row in found["rows"]}
    residual, plain = rows[False], rows[True]
    apart = [one - other for one, other in zip(residual[key]["seeds"], plain[key]["seeds"])]
    minutes = max(row["seconds_per_epoch"]["mean"] for row in found["rows"]) * found["epochs"] / 60
    cells = [
        f"`{found['name']}`",
        f"{found['split']} {metric(key).title}",
        _share(plain[key]["seeds"]),
        _share(residual[key]["seeds"]),
        _share(apart, sign="+"),
        str(len(found["seeds"])),
        f"{found['count']:,}",
        f"{minutes:.0f} min",
    ]
    return f"| {' | '.join(cells)} |"


def _share(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{sign}.1f}{spread} %"


def _where(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device_name"]
    return f"{device}, {found['jobs']}, torch {found['versions']['torch']}, {found['date'][:10]}"
