"""Continual learning: the methods of a recipe with a table [stream], side by side."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx import statistics
from plusx.continual import METHODS
from plusx.recipe import load_recipe, to_toml
from plusx.run.folder import now
from plusx.run.sequence import stream


REFERENCE = "naive"
METRICS = ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer")
VERSIONS = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
MACHINE = (
    "processor", "processor_flags", "instructions", "cores", "threads", "platform", "device",
    "device_name",
)  # fmt: skip


# scenario and method of every row
ALL = tuple(
    f"{scenario}-{kind}"
    for scenario in ("class", "task")
    for kind, method in METHODS.items()
    if scenario in method.scenarios
)


def measure(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    split: str,
    work: Path,
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the stream with these methods of ALL; () are all."""
    rows, results = [], []
    for row in methods or ALL:
        scenario, _, kind = row.partition("-")
        changes = [*overrides, f"stream.scenario={scenario}", f"method.kind={kind}"]
        recipe = load_recipe(name, [os.path.expandvars(change) for change in changes])
        folder = work / name / row
        result = stream(recipe, folder, seeds=seeds, split=split, progress=print)
        results.append(result)
        rows.append(
            {
                "name": f"{kind}, {scenario}",
                "method": kind,
                "scenario": scenario,
                **{key: result[key] for key in METRICS},
                "matrix": result["matrix"],
                "matrix_std": result["matrix_std"],
            }
        )
    for row in rows:
        row["difference"] = _difference(row, rows)
    first, environment = results[0], results[0]["machine"]
    split_words = ["--split", "test"] if split == "test" else []
    command = ["python", "tools/measure.py", name, *overrides, "--seeds", *map(str, seeds)]
    command += ["--methods", *methods] if methods else []
    averages = {row["name"]: row["average_accuracy"] for row in rows}
    return {
        "kind": "stream",
        "name": name,
        "metric": f"{split} accuracy over all tasks, with its scenario",
        "metrics": ["accuracy"],
        "noun": first["noun"],
        "value": {key: value["mean"] for key, value in averages.items()},
        "spread": {key: value["std"] for key, value in averages.items()},
        "seeds": list(seeds),
        "rows": rows,
        "tasks": first["tasks"],
        "count": first["count"],
        "seconds": None,  # runs that are finished are not repeated
        "jobs": f"1 run of {environment['threads']} threads".replace("1 threads", "1 thread"),
        "command": shlex.join([*command, *split_words]),
        "recipe": to_toml(load_recipe(name, overrides)),
        "versions": {key: environment[key] for key in VERSIONS},
        "machine": {key: environment[key] for key in MACHINE},
        "date": now(),
    }


def _difference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """The average accuracy minus that of the reference in the same scenario, over the seeds."""
    reference = next(
        other
        for other in rows
        if (other["method"], other["scenario"]) == (REFERENCE, row["scenario"])
    )
    if row is reference:
        return None
    key = "average_accuracy"
    differences = [a - b for a, b in zip(row[key]["seeds"], reference[key]["seeds"])]
    interval = statistics.mean_interval(differences, bounds=(-1.0, 1.0))
    low, high = (None, None) if interval is None else interval
    return {"difference": sum(differences) / len(differences), "low": low, "high": high}


def table(result: Mapping[str, Any]) -> str:
    """The methods of a measured stream, for a page."""
    lines = [
        "| scenario | method | average accuracy | difference to naive, 95 % | forgetting |",
        "|---|---|---:|---:|---:|",
    ]
    for row in result["rows"]:
        average, forgotten = (_spread(row[key]) for key in ("average_accuracy", "forgetting"))
        difference = row["difference"]
        text = ""
        if difference is not None:
            text = f"{100 * difference['difference']:+.1f}"
            if difference["low"] is not None:
                text += f" ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
        lines.append(
            f"| {row['scenario']} | `{row['method']}` | {average} | {text} | {forgotten} |"
        )
    machine, count = result["machine"], len(result["seeds"])
    caption = (
        f"Per cent, means and standard deviations over {count} seeds; {result['count']:,} "
        f"{result['noun']}s of the {result['metric'].split()[0]} split. Differences are paired by "
        f"seed. {machine['processor']}, torch {result['versions']['torch']}, "
        f"{result['date'][:10]}: `{result['command']}`."
    )
    return "\n".join([*lines, "", caption])


def _spread(value: Mapping[str, Any]) -> str:
    spread = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{spread}"
