"""Surface study: the loss around a network's weights (Li et al. 2018, sections 3 and 4).

Directions are random and filter-normalised, so that networks with different weight scales can be
compared: each filter has the norm of the network's own filter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.studies import Surface
from plusx.report.figures import band, lines_figure, map_figure
from plusx.statistics import spread
from plusx.study.blocks import preserved
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    finite,
    network_trials,
    open_trial,
    percent,
    some_batches,
)
from plusx.study.trial import Measurement, Trial


IMAGES = 128
DIRECTIONS = (0, 1)  # seeds, the same for every network
CURVED = 0.05  # a negative curvature counts if it exceeds this fraction of the largest at the point

Number = int | float  # as JSON gives them: 1.0 is written as 1
Evaluate = Callable[[nn.Module], float]
Direction = Mapping[str, Tensor]  # one tensor for each parameter that moves, by name


def random_direction(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return a filter-normalised direction (section 4, with their rule for biases and batch norm).

    A filter is the weights of one output channel or unit: a row of a parameter with two or more
    dimensions. Biases and parameters of norms do not move. The direction depends only on the seed
    and the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            rows, weights = noise.flatten(1), parameter.detach().cpu().double().flatten(1)
            rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-10)
            rows = rows * weights.norm(dim=1, keepdim=True)
            direction[name] = rows.reshape(noise.shape).to(parameter.device, parameter.dtype)
    return direction


def line(
    net: nn.Module, evaluate: Evaluate, direction: Direction, steps: Sequence[float]
) -> list[float]:
    """Return the loss, as `evaluate` computes it, at weights + step * direction for each step.

    The network is in evaluation mode, with its statistics of batch norm and without gradients, and
    is left unchanged bit for bit.
    """
    return plane(net, evaluate, (direction, {}), steps, [0.0])[0]


def plane(
    net: nn.Module,
    evaluate: Evaluate,
    directions: tuple[Direction, Direction],
    xs: Sequence[float],
    ys: Sequence[float],
) -> list[list[float]]:
    """Return the loss at weights + x * first + y * second: one row per y. Otherwise as `line`."""
    parameters = dict(net.named_parameters())
    for direction in directions:
        for name, tensor in direction.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise UserError(f"the direction does not match the network: parameter {name}")
    with preserved(net), torch.no_grad(), restored(parameters) as original:
        net.eval()
        rows = []
        for y in ys:
            row = []
            for x in xs:
                for name in {**directions[0], **directions[1]}:
                    moved = original[name].clone()
                    for step, direction in zip((x, y), directions):
                        if name in direction:
                            moved += step * direction[name]
                    parameters[name].copy_(moved)
                row.append(evaluate(net))
            rows.append(row)
        return rows


@contextmanager
def restored(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of the parameters, and restore the parameters at the end."""
    original = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield original
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(original[name])


def measure_surface(recipe: Recipe, folder: Path, points: int, span: float) -> dict[str, Any]:
    """Measure the loss along one direction and over two, as JSON: `steps`, `line` and `plane` (rows
    of the second direction). None where the loss is not finite."""
    net, sets = open_trial(recipe, folder)
    batches = some_batches(sets.train, IMAGES)

    def loss(moved: nn.Module) -> float:
        losses = [
            F.cross_entropy(moved(b.inputs), b.known_targets, reduction="sum") for b in batches
        ]
        return sum(batch_loss.item() for batch_loss in losses) / sum(map(len, batches))

    first, second = (random_direction(net, seed) for seed in DIRECTIONS)
    steps = [float(step) for step in np.linspace(-span, span, points)]
    rows = plane(net, loss, (first, second), steps, steps)
    return {
        "steps": steps,
        "line": list(map(finite, line(net, loss, first, steps))),
        "plane": [list(map(finite, row)) for row in rows],
    }


def fraction_curved_down(
    steps: Sequence[Number], values: Sequence[Sequence[Number | None]]
) -> float | None:
    """Return the fraction of inner grid points at which the surface curves down in some direction.

    By the eigenvalues of the Hessian from finite differences (Li et al. 2018, section 6): the
    smaller one is negative, and exceeds CURVED times the larger one in magnitude. None for a grid
    of fewer than 3 points per side.
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
    measured = np.isfinite(low)
    bent = low < -CURVED * np.maximum(np.abs(high), np.abs(low))
    return float((bent & measured).sum() / measured.sum()) if measured.any() else None


def _trials(recipe: Recipe, table: Surface, source: Dataset) -> list[Trial]:
    if source.multilabel:
        raise UserError(
            f"{source.name} has several labels per image; the study needs one label per image"
        )
    measurement = Measurement("surface", (table.points, table.span))
    return network_trials(recipe, table.networks, source, measurement)


def _row(group: Group) -> dict[str, Any]:
    results = group.measured("surface")
    return {
        "loss": _spread([_loss_at(result, 0.0) for result in results]),
        "near": _spread([_loss_at(result, 0.5) for result in results]),
        "highest": _spread([_highest(result) for result in results]),
        "bent": _spread(
            [fraction_curved_down(result["steps"], result["plane"]) for result in results]
        ),
        **group.errors,
    }


def _finding(rows: Sequence[Row]) -> str:
    shapes = [
        f"around {row['name']} the loss curves down at {percent(row['bent'])} of the grid and is "
        f"{row['near']['mean']:.2g} at half the span"
        for row in rows
        if row["bent"] is not None and row["near"] is not None
    ]
    text = "; ".join(shapes)
    return f"{text[0].upper()}{text[1:]}." if text else "The grid is too small to show a shape."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    loss = {"title": "loss", "scale": "log"}
    lines = [
        band(group.name, results[0]["steps"], [result["line"] for result in results])
        for group in groups
        for results in [group.measured("surface")]
    ]
    figures = [
        lines_figure(
            "Loss along a random direction",
            "Normalised filter by filter; 0 is the trained network. Logarithmic.",
            lines,
            x={"title": "step", "scale": "linear"},
            y=loss,
        )
    ]
    for group in groups:
        first_seed = group.measured("surface")[0]
        figures.append(
            map_figure(
                f"Loss around {group.name}",
                "Over two random directions, normalised filter by filter; seed "
                f"{group.seeds[0]}. The trained network is in the middle.",
                {"title": "first direction", "scale": "linear"},
                {"title": "second direction", "scale": "linear"},
                loss,
                (first_seed["steps"], first_seed["steps"], first_seed["plane"]),
            )
        )
    return figures


def _loss_at(result: Mapping[str, Any], share: float) -> float | None:
    """Return the loss at the middle of the line, or the mean of both sides at a fraction of the
    span."""
    steps = np.array(result["steps"])
    nearest = {int(np.abs(steps - sign * share * steps[-1]).argmin()) for sign in (-1, 1)}
    values = [result["line"][index] for index in nearest]
    return None if any(v is None for v in values) else float(np.mean(values))


def _highest(result: Mapping[str, Any]) -> Number | None:
    return max((v for row in result["plane"] for v in row if v is not None), default=None)


def _spread(values: Sequence[Number | None]) -> dict[str, Any] | None:
    numbers = [float(value) for value in values if value is not None]
    return spread(numbers) if len(numbers) == len(values) else None


SURFACE = Experiment[Surface](
    title="Loss surface",
    question="What does the loss look like around the weights, with and without shortcuts?",
    trials=_trials,
    columns=lambda table, groups: [
        column("loss", "Loss at the weights"),
        column("near", "Mean loss at half the span"),
        column("highest", "Highest loss"),
        column("bent", "Curves down", "% of the grid", "share"),
        TRAIN_ERROR,
        ERROR,
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        f"The loss is that of {IMAGES} training images, in evaluation mode with the statistics of "
        "batch norm as they are; biases and norms do not move. Every network is moved along the "
        "same two draws, normalised to its own filters. A surface curves down where the smaller "
        "eigenvalue of its Hessian, by finite differences, is below zero by more than "
        f"{100 * CURVED:.0f} % of the larger."
    ),
)
