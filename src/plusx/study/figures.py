"""Figures that several studies share."""

from collections.abc import Callable, Sequence
from typing import Any

from plusx.report.figures import Figure, band, lines_figure
from plusx.report.history import EpochPoint
from plusx.study.experiment import Group


BLOCK = {"title": "position of the block", "scale": "linear"}


def relative(count: int) -> list[float]:
    """Return the relative positions of `count` blocks, from 0 for the first to 1 for the last."""
    return [index / max(1, count - 1) for index in range(count)]


def error_figures(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[Figure]:
    """Return the figures of training and validation error over the epochs."""
    bands = "bands from the lowest to the highest seed"
    return [
        lines_figure(
            "Training error",
            f"Mean over the epoch while it trains; {bands}.",
            training_lines(groups, dashed),
        ),
        lines_figure(
            "Validation error", f"At every evaluation; {bands}.", validation_lines(groups, dashed)
        ),
    ]


def training_lines(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the training error of each group over its epochs, measured during training."""
    return [
        over_epochs(group, lambda point: point.train_error, dashed=group.name in dashed)
        for group in groups
    ]


def validation_lines(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the validation error of each group over its epochs."""
    return [
        over_epochs(
            group,
            lambda point: None if point.score is None else 1 - point.score,
            dashed=group.name in dashed,
        )
        for group in groups
    ]


def over_epochs(
    group: Group, value: Callable[[EpochPoint], float | None], *, dashed: bool = False
) -> dict[str, Any]:
    """Return the line of a value over the epochs that all runs have: mean, lowest and highest."""
    count = min(len(run.points) for run in group.runs)
    seeds = [[value(point) for point in run.points[:count]] for run in group.runs]
    epochs = [point.epoch for point in group.runs[0].points[:count]]
    return band(group.name, epochs, seeds, dashed=dashed)
