"""Surface: what does the loss look like around the weights, with and without shortcuts?

Li et al. 2018: without shortcuts the surface of a deep network is chaotic, with them nearly convex.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

from plusx.data.sample import Source
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.studies import Surface
from plusx.study import drawn
from plusx.study.bands import Number, band_of, some_batches, spread_of
from plusx.study.plan import Cell, Made, Study, by_name, look_with, opened, with_net
from plusx.study.surface import line, plane, random_direction
from plusx.zoo import find


IMAGES = 128
DIRECTIONS = (0, 1)  # seeds, the same for every network
CURVED = 0.05  # a curvature counts from this share of the largest at the same point on


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Surface)
    if source.multilabel:
        raise UserError(f"{source.name} has several labels an image; the surface is that of one")
    for network in said.networks:
        find(network)
    return [
        Cell(
            name=network,
            seed=seed,
            recipe=with_net(recipe, network, seed, source),
            factors={"network": network},
            looks=(look_with("surface", said.points, said.span),),
        )
        for network in said.networks
        for seed in said.seeds
    ]


def look(recipe: Recipe, folder: Path, points: int, span: float) -> dict[str, Any]:
    """The loss along one direction and over two, as JSON: `steps`, `line` and `plane` (rows of the
    second direction). None where the loss is not finite."""
    net, sets = opened(recipe, folder)
    batches = some_batches(sets.train, IMAGES)

    def loss(moved: nn.Module) -> float:
        total = sum(
            F.cross_entropy(moved(b.inputs), b.known_targets, reduction="sum").item()
            for b in batches
        )
        return total / sum(map(len, batches))

    first, second = (random_direction(net, seed) for seed in DIRECTIONS)
    steps = [float(step) for step in np.linspace(-span, span, points)]
    return {
        "steps": steps,
        "line": [_finite(value) for value in line(net, loss, first, steps)],
        "plane": [
            [_finite(value) for value in row]
            for row in plane(net, loss, (first, second), steps, steps)
        ],
    }


def bent_down(steps: Sequence[Number], values: Sequence[Sequence[Number | None]]) -> float | None:
    """The share of inner grid points at which the surface curves down in some direction.

    By the eigenvalues of the Hessian from finite differences (Li et al. 2018, section 6, look at
    them likewise): the smaller is below 0 by more than CURVED of the larger. None for a grid of
    fewer than 3 points a side.
    """
    if len(steps) < 3:
        return None
    grid = np.array([[np.nan if v is None else v for v in row] for row in values])
    middle = grid[1:-1, 1:-1]
    across = grid[1:-1, 2:] - 2 * middle + grid[1:-1, :-2]
    upward = grid[2:, 1:-1] - 2 * middle + grid[:-2, 1:-1]
    mixed = (grid[2:, 2:] - grid[2:, :-2] - grid[:-2, 2:] + grid[:-2, :-2]) / 4
    half, root = (across + upward) / 2, np.hypot((across - upward) / 2, mixed)
    low, high = half - root, half + root
    known = np.isfinite(low)
    bent = low < -CURVED * np.maximum(np.abs(high), np.abs(low))
    return float((bent & known).sum() / known.sum()) if known.any() else None


def columns(recipe: Recipe) -> list[dict[str, str]]:
    said = recipe.study
    assert isinstance(said, Surface)
    return [
        {"key": "loss", "title": "Loss at the weights", "unit": "", "kind": "number"},
        {"key": "near", "title": "Mean loss at half the span", "unit": "", "kind": "number"},
        {"key": "highest", "title": "Highest loss", "unit": "", "kind": "number"},
        {"key": "bent", "title": "Curves down", "unit": "% of the grid", "kind": "share"},
        drawn.TRAIN_ERROR,
        drawn.ERROR,
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        looks = [each.seen("surface") for each in group]
        runs = [each.run for each in group if each.run is not None]
        bent = [bent_down(look["steps"], look["plane"]) for look in looks]
        found.append(
            {
                "name": name,
                "seeds": [each.cell.seed for each in group],
                "loss": _spread([_nearest(look, 0.0) for look in looks]),
                "near": _spread([_nearest(look, 0.5) for look in looks]),
                "highest": _spread([_highest(look) for look in looks]),
                "bent": _spread(bent),
                "train_error": spread_of([run.wrong for run in runs]),
                "error": spread_of([1 - run.scores["accuracy"] for run in runs]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    said = [
        f"around {row['name']} the loss curves down at {drawn.percent(row['bent'])} of the grid "
        f"and comes to {row['near']['mean']:.2g} at half the span"
        for row in rows
        if row["bent"] is not None and row["near"] is not None
    ]
    text = "; ".join(said)
    return f"{text[:1].upper()}{text[1:]}." if said else "The grid is too small to tell a shape."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    told = finding(rows)
    looks = {name: [each.seen("surface") for each in group] for name, group in groups.items()}
    logarithmic = {"title": "loss", "scale": "log"}
    found = [
        drawn.lines_figure(
            "Loss along a random direction",
            "Normalised filter by filter; 0 is the trained network. Logarithmic.",
            told,
            [
                band_of(name, each[0]["steps"], [look["line"] for look in each])
                for name, each in looks.items()
            ],
            x={"title": "step", "scale": "linear"},
            y=logarithmic,
        )
    ]
    for name, each in looks.items():
        found.append(
            {
                "kind": "map",
                "title": f"Loss around {name}",
                "caption": "Over two random directions, normalised filter by filter; seed "
                f"{groups[name][0].cell.seed}. The trained network is in the middle.",
                "alternative": told,
                "x": {"title": "first direction", "scale": "linear"},
                "y": {"title": "second direction", "scale": "linear"},
                "value": logarithmic,
                "xs": each[0]["steps"],
                "ys": each[0]["steps"],
                "values": each[0]["plane"],
            }
        )
    return found


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            f"The loss is that of {IMAGES} training images, in evaluation mode with the statistics "
            "of batch norm as they are; biases and norms do not move. Every network is moved along "
            "the same two draws, normalised to its own filters. A surface curves down where the "
            "smaller eigenvalue of its Hessian, by finite differences, is below zero by more than "
            f"{100 * CURVED:.0f} % of the larger."
        )
    ]


def _nearest(look: Mapping[str, Any], share: float) -> float | None:
    """The loss at the middle of the line, or the mean of both sides at a share of the span."""
    steps = np.array(look["steps"])
    places = {int(np.abs(steps - sign * share * steps[-1]).argmin()) for sign in (-1, 1)}
    values = [look["line"][place] for place in places]
    return None if any(v is None for v in values) else float(np.mean(values))


def _highest(look: Mapping[str, Any]) -> Number | None:
    return max((v for row in look["plane"] for v in row if v is not None), default=None)


def _spread(values: Sequence[Number | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return spread_of(known) if len(known) == len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


SURFACE = Study(
    title="Loss surface",
    question="What does the loss look like around the weights, with and without shortcuts?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
