"""The tables of docs/pretrain.md, from the files that tools/pretraining.py writes."""

from collections.abc import Mapping
from typing import Any


RECIPES = ("digits-simclr", "fashion-simclr", "cifar10-simclr")


def table(result: Mapping[str, Any]) -> str:
    """Probes of each method beside the network before training, and accuracies with few labels."""
    lines = [
        "| method | linear probe | more than before training | nearest neighbours | more |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in [*result["rows"], {**result["random"], "method": "before training"}]:
        cells = [f"`{row['method']}`" if row in result["rows"] else row["method"]]
        for name in ("linear", "neighbours"):
            cells += [_mean(row[name]), _points(row[name].get("over_random"))]
        lines.append(f"| {' | '.join(cells)} |")
    first = result["rows"][0]["method"]
    lines += ["", f"| labels | fine-tuned from `{first}` | from scratch | difference |"]
    lines.append("|---:|---:|---:|---:|")
    for row in result["labels"]:
        cells = [f"{100 * row['fraction']:g} %", _mean(row["pretrained"]), _mean(row["scratch"])]
        lines.append(f"| {' | '.join([*cells, _points(row)])} |")
    seeds = len(result["labels"][0].get("seeds", result["seeds"]))
    tuning = f"{seeds} seeds, {result['labels'][0]['steps']:,} steps"
    if "augment" in result["labels"][0]:
        tuning += ", the augmentation chosen on validation images"
    machine = result["machine"]
    caption = (
        f"Mean and standard deviation of {len(result['seeds'])} seeds on {result['count']:,} "
        f"{result['split']} {result['noun']}s, differences between the same seeds with their 95 % "
        f"interval; `{result['network']}`, {result['steps']:,} steps; with labels {tuning}. "
        f"{machine['processor']}, {machine['threads']} "
        f"thread, torch {result['versions']['torch']}, {result['date'][:10]}."
    )
    return "\n".join([*lines, "", caption])


def _mean(values: Mapping[str, Any]) -> str:
    text = f"{100 * values['mean']:.1f}"
    return f"{text} %" if values["std"] is None else f"{text} ± {100 * values['std']:.1f} %"


def _points(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    if gain["low"] is None:
        return f"{100 * gain['difference']:+.1f} (chance unknown)"
    return (
        f"{100 * gain['difference']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
    )
