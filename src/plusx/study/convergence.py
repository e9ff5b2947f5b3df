"""How soon networks come to an accuracy: epochs, and seconds of training."""

import math
from collections.abc import Sequence
from typing import Any

from plusx.data.dataset import Dataset
from plusx.recipe import Recipe
from plusx.recipe.studies import Convergence
from plusx.statistics import differences, spread
from plusx.study.experiment import (
    ERROR,
    MULTIPLY_ADDS,
    PARAMETERS,
    Experiment,
    Group,
    Row,
    column,
    listed,
    with_net,
)
from plusx.study.figures import lines_figure, validation_lines
from plusx.study.results import epochs_to
from plusx.study.trial import Trial


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table = recipe.study
    assert isinstance(table, Convergence)
    return [
        Trial(
            name=name,
            seed=seed,
            recipe=with_net(recipe, name, seed, source),
            factors={"threshold": table.threshold},
        )
        for name in table.networks
        for seed in table.seeds
    ]


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    table = recipe.study
    assert isinstance(table, Convergence)
    threshold = f"to {100 * table.threshold:g} %"
    return [
        PARAMETERS,
        MULTIPLY_ADDS,
        column("reached", "Seeds that reach it", kind="count"),
        column("epochs", "Epochs", threshold),
        column("seconds", "Seconds", threshold),
        column("seconds_per_epoch", "Seconds", "an epoch"),
        ERROR,
    ]


def _row(group: Group) -> dict[str, Any]:
    threshold = float(group.factors["threshold"])
    reached = [
        (float(epoch), epoch * run.seconds_per_epoch)
        for run in group.runs
        if (epoch := epochs_to(run.points, threshold)) is not None
    ]
    return {
        **group.costs,
        "seconds_per_epoch": spread([run.seconds_per_epoch for run in group.runs]),
        "reached": len(reached),
        "epochs": spread([epochs for epochs, _ in reached]) if reached else None,
        "seconds": spread([seconds for _, seconds in reached]) if reached else None,
        "error": group.errors["error"],
    }


def _finding(rows: Sequence[Row]) -> str:
    """Which is the first in epochs and in seconds, which are not known to differ from it, and which
    did not come there."""
    whole = [row for row in rows if row["reached"] == len(row["seeds"])]
    short = [row["name"] for row in rows if row not in whole]
    parts = [_first(whole, "epochs"), _first(whole, "seconds")] if whole else []
    if short:
        parts.append(f"{listed(short)} did not reach the accuracy with every seed")
    return f"{'; '.join(parts)}."


def _first(rows: Sequence[Row], what: str) -> str:
    best = min(rows, key=lambda row: row[what]["mean"])
    others = [row for row in rows if row is not best]
    pairs = [(row[what]["seeds"], best[what]["seeds"]) for row in others]
    found = differences(pairs, bounds=(-math.inf, math.inf))
    alike = [
        row["name"]
        for row, later in zip(others, found, strict=True)
        if later is None or later.low <= 0
    ]
    first = f"{best['name']} needs the fewest {what} on average ({best[what]['mean']:.1f})"
    return f"{first}, not known to differ from {listed(alike)}" if alike else first


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    reached = "; ".join(
        f"{row['name']} after {row['epochs']['mean']:.1f} epochs"
        if row["epochs"] is not None
        else f"{row['name']} never"
        for row in rows
    )
    return [
        lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            f"The threshold is reached by {reached}.",
            validation_lines(groups),
            level=1 - float(groups[0].factors["threshold"]),
        )
    ]


def _notes(recipe: Recipe) -> str:
    return (
        "An accuracy is reached at the first epoch whose evaluation is at least as high; means are "
        "over those seeds that reach it. The first is compared with the others by Welch's "
        "intervals over the seeds, all of them together 95 %. Seconds are of training alone, and "
        "where several runs are made at a time they share the machine: compare them within one "
        "study only."
    )


CONVERGENCE = Experiment(
    title="Convergence",
    question="How many epochs, and how many seconds, until an accuracy is reached?",
    trials=_trials,
    columns=_columns,
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
