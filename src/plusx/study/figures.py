"""The figures that several studies have, as docs/studies.md describes them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from plusx.report import values
from plusx.study.experiment import Group, percent
from plusx.study.results import curve


Figure = dict[str, Any]
Number = int | float  # as JSON gives them: 1.0 is written as 1

EPOCHS = {"title": "epoch", "scale": "linear"}
SHARE = {"title": "", "scale": "share"}
LOG = {"title": "", "scale": "log"}
BLOCK = {"title": "position of the block", "scale": "linear"}


def lines_figure(
    title: str,
    caption: str,
    alternative: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    x: Mapping[str, str] = EPOCHS,
    y: Mapping[str, str] = SHARE,
    level: float | None = None,
) -> Figure:
    return {
        "kind": "lines",
        "title": title,
        "caption": caption,
        "alternative": alternative,
        "x": dict(x),
        "y": dict(y),
        "lines": list(lines),
        "level": level,
    }


def dots_figure(
    title: str,
    caption: str,
    alternative: str,
    x: Mapping[str, str],
    values_by_name: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Every seed of a spread, the mean as a line, and its "interval" as a bar if there is one."""
    groups = [
        {
            "name": name,
            "values": value["seeds"],
            "mean": value["mean"],
            "interval": value.get("interval"),
        }
        for name, value in values_by_name.items()
    ]
    return {"kind": "dots", "title": title, "caption": caption, "alternative": alternative,
            "x": dict(x), "groups": groups}  # fmt: skip


def band(
    name: str,
    x: Sequence[Number],
    seeds: Sequence[Sequence[Number | None]],
    *,
    dashed: bool = False,
    average: Callable[[Sequence[float]], float] = mean,
) -> dict[str, Any]:
    """A line of a figure: average, lowest and highest over the seeds, where all are known."""
    columns = {
        at: [float(value) for value in column if value is not None]
        for at, column in zip(x, zip(*seeds, strict=True), strict=True)
    }
    whole = {at: column for at, column in columns.items() if len(column) == len(seeds)}
    return {
        "name": name,
        "x": list(whole),
        "mean": [average(column) for column in whole.values()],
        "low": [min(column) for column in whole.values()],
        "high": [max(column) for column in whole.values()],
        "dashed": dashed,
    }


def relative(count: int) -> list[float]:
    """Where each of `count` blocks stands, from 0 for the first to 1 for the last."""
    return [index / max(1, count - 1) for index in range(count)]


def error_figures(
    groups: Sequence[Group], rows: Sequence[Mapping[str, Any]], dashed: Sequence[str] = ()
) -> list[Figure]:
    """Training and validation error over the epochs."""
    alternative = errors_in_words(rows)
    bands = "bands from the lowest to the highest seed"
    return [
        lines_figure(
            "Training error",
            f"Mean over the epoch while it trains; {bands}.",
            alternative,
            training_lines(groups, dashed),
        ),
        lines_figure(
            "Validation error",
            f"At every evaluation; {bands}.",
            alternative,
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
        line = curve_line(curve(group.name, group.runs), "accuracy", dashed=group.name in dashed)
        errors = {
            part: [1 - accuracy for accuracy in line[other]]
            for part, other in (("mean", "mean"), ("low", "high"), ("high", "low"))
        }
        lines.append({**line, **errors})
    return lines


def curve_line(curve: Mapping[str, Any], key: str, *, dashed: bool = False) -> dict[str, Any]:
    """The line of a curve over the epochs for which the value is known."""
    known = [index for index, value in enumerate(curve[key]["mean"]) if value is not None]
    return {
        "name": curve["name"],
        "x": [curve["epochs"][index] for index in known],
        **{part: [curve[key][part][index] for index in known] for part in ("mean", "low", "high")},
        "dashed": dashed,
    }


def errors_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The errors of the trained networks, for a figure's text alternative."""
    errors = "; ".join(
        f"{row['name']} {percent(row['train_error'])} in training and {percent(row['error'])} in "
        "validation"
        for row in rows
    )
    return f"Errors of the trained networks: {errors}."


def number(value: Number | None) -> str:
    """A number in three digits, written as tables write it."""
    return "not finite" if value is None else values.number(value)
