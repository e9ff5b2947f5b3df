"""Epochs, and seconds of training, until an accuracy is reached."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plusx.data.dataset import Dataset
from plusx.recipe import Recipe
from plusx.recipe.studies import Convergence
from plusx.report.figures import lines_figure
from plusx.statistics import spread
from plusx.study.experiment import (
    ERROR,
    MULTIPLY_ADDS,
    PARAMETERS,
    Experiment,
    Group,
    Row,
    column,
    listed,
    lowest,
    network_trials,
)
from plusx.study.figures import validation_lines
from plusx.study.results import epochs_to
from plusx.study.trial import Trial


def _trials(recipe: Recipe, table: Convergence, source: Dataset) -> list[Trial]:
    return [
        replace(trial, factors={"threshold": table.threshold})
        for trial in network_trials(recipe, table.networks, source)
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
    """Name the fastest networks in epochs and seconds, and those that are too inaccurate."""
    complete = [row for row in rows if row["reached"] == len(row["seeds"])]
    incomplete = [row["name"] for row in rows if row not in complete]
    sentences = [_fastest(complete, "epochs"), _fastest(complete, "seconds")] if complete else []
    if incomplete:
        sentences.append(f"{listed(incomplete)} did not reach the accuracy with every seed")
    return f"{'; '.join(sentences)}."


def _fastest(rows: Sequence[Row], key: str) -> str:
    best, similar = lowest(rows, key)
    return f"{best['name']} needs the fewest {key} on average ({best[key]['mean']:.1f}){similar}"


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            validation_lines(groups),
            level=1 - float(groups[0].factors["threshold"]),
        )
    ]


CONVERGENCE = Experiment[Convergence](
    title="Convergence",
    question="How many epochs, and how many seconds, until an accuracy is reached?",
    trials=_trials,
    columns=lambda table, groups: [
        PARAMETERS,
        MULTIPLY_ADDS,
        column("reached", "Seeds that reach it", kind="count"),
        column("epochs", "Epochs", f"to {100 * table.threshold:g} %"),
        column("seconds", "Seconds", f"to {100 * table.threshold:g} %"),
        column("seconds_per_epoch", "Seconds", "an epoch"),
        ERROR,
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "An accuracy is reached at the first epoch whose evaluation is at least as high; means are "
        "over the seeds that reach it. The first network is compared with each other one by "
        "Welch's intervals over the seeds, with a joint level of 95 %. Seconds are training time "
        "only; runs in parallel share the machine: compare times within one study only."
    ),
)
