"""How soon networks come to an accuracy: epochs, and seconds of training."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from plusx.data.source import Source
from plusx.recipe import Recipe
from plusx.recipe.studies import Convergence
from plusx.study import drawn
from plusx.study.bands import listed
from plusx.study.finding import difference
from plusx.study.plan import Cell, Made, Study, by_name, with_net
from plusx.study.rows import epochs_to, row, spread


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Convergence)
    return [
        Cell(
            name=name,
            seed=seed,
            recipe=with_net(recipe, name, seed, source),
            factors={"threshold": said.threshold},
        )
        for name in said.networks
        for seed in said.seeds
    ]


def columns(recipe: Recipe) -> list[dict[str, str]]:
    said = recipe.study
    assert isinstance(said, Convergence)
    threshold = f"to {100 * said.threshold:g} %"
    return [
        drawn.PARAMETERS,
        drawn.MULTIPLY_ADDS,
        {"key": "reached", "title": "Seeds that reach it", "unit": "", "kind": "count"},
        {"key": "epochs", "title": "Epochs", "unit": threshold, "kind": "number"},
        {"key": "seconds", "title": "Seconds", "unit": threshold, "kind": "number"},
        {"key": "seconds_per_epoch", "title": "Seconds", "unit": "an epoch", "kind": "number"},
        drawn.ERROR,
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        threshold = float(group[0].cell.factors["threshold"])
        scores = row(name, runs, threshold)
        reached = [
            (float(epoch), epoch * run.seconds_per_epoch)
            for run in runs
            if (epoch := epochs_to(run.points, threshold)) is not None
        ]
        found.append(
            {
                **{
                    key: scores[key]
                    for key in ("name", "seeds", "parameters", "multiply_adds", "seconds_per_epoch")
                },
                "reached": len(reached),
                "epochs": spread([epochs for epochs, _ in reached]) if reached else None,
                "seconds": spread([seconds for _, seconds in reached]) if reached else None,
                "error": spread([1 - run.scores["accuracy"] for run in runs]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which is the first in epochs and in seconds, which are not told from it, by Welch's interval
    of 95 % over the seeds, and which did not come there."""
    whole = [row for row in rows if row["reached"] == len(row["seeds"])]
    short = [row["name"] for row in rows if row not in whole]
    said = []
    if whole:
        said += [_first(whole, "epochs"), _first(whole, "seconds")]
    if short:
        said.append(f"{listed(short)} did not reach the accuracy with every seed")
    return f"{'; '.join(said)}."


def _first(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    best = min(rows, key=lambda row: mean(row[what]["seeds"]))
    said = f"{best['name']} needs the fewest {what} on average ({best[what]['mean']:.1f})"
    alike = [
        row["name"]
        for row in rows
        if row is not best
        and (
            (found := difference(row[what]["seeds"], best[what]["seeds"])) is None or found.low <= 0
        )
    ]
    return f"{said}, not told from {listed(alike)}" if alike else said


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    threshold = float(made[0].cell.factors["threshold"])
    reached = "; ".join(
        f"{row['name']} after {row['epochs']['mean']:.1f} epochs"
        if row["epochs"] is not None
        else f"{row['name']} never"
        for row in rows
    )
    return [
        drawn.lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            f"The threshold is reached by {reached}.",
            drawn.validation_lines(groups),
            level=1 - threshold,
        )
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            "An accuracy is reached at the first epoch whose evaluation is at least as high; means "
            "are over those seeds that reach it. Seconds are of training alone, and where several "
            "runs are made at a time they share the machine: compare them within one study only."
        )
    ]


CONVERGENCE = Study(
    title="Convergence",
    question="How many epochs, and how many seconds, until an accuracy is reached?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
