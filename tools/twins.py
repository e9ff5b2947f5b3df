"""Results of recipes for other tasks, the residual network next to its plain twin."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx.report.metrics import METRICS, PERCENT, Metric
from plusx.statistics import difference


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
    "text": ("text-sentiment",),
    "translate": ("translate-de-en", "translate-en-de"),
    "captions": ("scenes-caption",),
    "sound": (
        "digits-spot",
        "digits-spot-speaker",
        "digits-transcribe",
        "digits-transcribe-speaker",
        "voice-commands",
    ),
    "transfer": ("mosaic-labels", "bands-satellite", "bands-visible"),
}
GROUPS["all"] = tuple(name for group in GROUPS.values() for name in group)


def table(group: str) -> str:
    """The recipes of a group; those without a file under results/ are listed below the table."""
    columns = ("recipe", "metric", "plain twin", "residual", "difference", "seeds", "samples",
               "parameters", "training")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * (len(columns) - 2)}"]
    missing = []
    environments: dict[str, list[str]] = {}
    for name in GROUPS[group]:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            missing.append(f"`python tools/measure.py {name}`")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        lines.append(_row(result))
        environments.setdefault(_where(result), []).append(f"`{name}`")
    commonest = max(environments, key=lambda key: len(environments[key]), default="")
    others = [
        f"{', '.join(names)}: {environment}"
        for environment, names in environments.items()
        if environment != commonest
    ]
    end = (
        "Differences have Welch's interval of 95 % over the seeds; with one seed, chance is "
        "unknown. Parameters are those of the plain twin and the residual network. Training is "
        "the time of one run."
    )
    paragraphs = [
        "\n".join(lines),
        " ".join([f"{commonest}.", *(f"{environment}." for environment in others), end]),
    ]
    paragraphs = paragraphs if environments else []
    if missing:
        paragraphs.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(paragraphs)


def _row(result: Mapping[str, Any]) -> str:
    key = result["metrics"][0]
    rows = {"plain" in row["name"]: row for row in result["rows"]}
    residual, plain = rows[False], rows[True]
    minutes = (
        max(row["seconds_per_epoch"]["mean"] for row in result["rows"]) * result["epochs"] / 60
    )
    cells = [
        f"`{result['name']}`",
        f"{result['split']} {METRICS[key].title}",
        _spread(METRICS[key], plain[key]["seeds"]),
        _spread(METRICS[key], residual[key]["seeds"]),
        _difference(METRICS[key], residual[key]["seeds"], plain[key]["seeds"]),
        str(len(result["seeds"])),
        f"{result['count']:,}",
        _parameters(plain["parameters"], residual["parameters"]),
        f"{minutes:.0f} min",
    ]
    return f"| {' | '.join(cells)} |"


def _spread(metric: Metric, values: Sequence[float]) -> str:
    return metric.text(mean(values), stdev(values) if len(values) > 1 else None, decimals=1)


def _difference(metric: Metric, first: Sequence[float], second: Sequence[float]) -> str:
    """How much larger the first mean is than the second, and its interval."""
    unit = "points" if metric.unit == PERCENT else metric.unit
    middle = metric.shown(mean(first) - mean(second), sign="+", decimals=1) + f" {unit}".rstrip()
    gap = difference(first, second, bounds=(-metric.maximum, metric.maximum))
    if gap is None:
        return f"{middle}, {'one seed' if len(first) < 2 else 'no seed differs'}"
    low, high = (metric.shown(end, sign="+", decimals=1) for end in (gap.low, gap.high))
    return f"{middle} ({low} to {high})"


def _parameters(plain: int, residual: int) -> str:
    return f"{plain:,}" if plain == residual else f"{plain:,} and {residual:,}"


def _where(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device_name"]
    return f"{device}, {result['jobs']}, torch {result['versions']['torch']}, {result['date'][:10]}"
