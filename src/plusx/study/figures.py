"""The figures that several studies have."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report.figures import Figure, line, lines_figure
from plusx.study.experiment import Group
from plusx.study.results import curve


BLOCK = {"title": "position of the block", "scale": "linear"}


def relative(count: int) -> list[float]:
    """Where each of `count` blocks stands, from 0 for the first to 1 for the last."""
    return [index / max(1, count - 1) for index in range(count)]


def error_figures(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[Figure]:
    """Training and validation error over the epochs."""
    bands = "bands from the lowest to the highest seed"
    return [
        lines_figure(
            "Training error",
            f"Mean over the epoch while it trains; {bands}.",
            training_lines(groups, dashed),
        ),
        lines_figure(
            "Validation error",
            f"At every evaluation; {bands}.",
            validation_lines(groups, dashed),
        ),
    ]


def training_lines(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The training error of each row over its epochs, as it was while the network changed."""
    return [
        curve_line(curve(group.name, group.runs), "train_error", dashed=group.name in dashed)
        for group in groups
    ]


def validation_lines(groups: Sequence[Group], dashed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The validation error of each row after its epochs."""
    lines = []
    for group in groups:
        accuracy = curve_line(
            curve(group.name, group.runs), "accuracy", dashed=group.name in dashed
        )
        errors = {
            part: [1 - value for value in accuracy[other]]
            for part, other in (("mean", "mean"), ("low", "high"), ("high", "low"))
        }
        lines.append({**accuracy, **errors})
    return lines


def curve_line(curve: Mapping[str, Any], key: str, *, dashed: bool = False) -> dict[str, Any]:
    """The line of a curve over the epochs for which the value is known."""
    values = curve[key]
    return line(
        curve["name"],
        curve["epochs"],
        values["mean"],
        low=values["low"],
        high=values["high"],
        dashed=dashed,
    )
