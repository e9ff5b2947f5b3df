"""Figures of a result as JSON (docs/studies.md); `report.charts` draws them."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any


Figure = dict[str, Any]
Number = int | float  # as JSON gives them: 1.0 is written as 1

EPOCHS = {"title": "epoch", "scale": "linear"}
SHARE = {"title": "", "scale": "share"}
LOG = {"title": "", "scale": "log"}


def lines_figure(
    title: str,
    caption: str,
    lines: Sequence[Mapping[str, Any]],
    *,
    x: Mapping[str, str] = EPOCHS,
    y: Mapping[str, str] = SHARE,
    level: float | None = None,
) -> Figure:
    """Return a line chart; `level` is the height of a dotted line."""
    return {
        "kind": "lines",
        "title": title,
        "caption": caption,
        "x": dict(x),
        "y": dict(y),
        "lines": list(lines),
        "level": level,
    }


def points_figure(
    title: str,
    caption: str,
    x: Mapping[str, str],
    y: Mapping[str, str],
    points: Mapping[str, tuple[Sequence[Number], Sequence[Number]]],
    lines: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Return a chart of points; `points` are (positions, values) of each name."""
    groups = [
        {"name": name, "x": list(positions), "values": list(values)}
        for name, (positions, values) in points.items()
    ]
    return {"kind": "points", "title": title, "caption": caption, "x": dict(x), "y": dict(y),
            "groups": groups, "lines": list(lines)}  # fmt: skip


def dots_figure(
    title: str, caption: str, x: Mapping[str, str], spreads: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Return a dot plot of the seeds of each spread, with mean and "interval", if there is one."""
    groups = [
        {
            "name": name,
            "values": value["seeds"],
            "mean": value["mean"],
            "interval": value.get("interval"),
        }
        for name, value in spreads.items()
    ]
    return {"kind": "dots", "title": title, "caption": caption, "x": dict(x), "groups": groups}


def bars_figure(
    title: str,
    caption: str,
    x: Mapping[str, str],
    names: Sequence[str],
    parts: Mapping[str, Sequence[Number]],
) -> Figure:
    """Return a stacked bar chart: a bar for each name, with the values of `parts`."""
    segments = [{"name": name, "values": list(values)} for name, values in parts.items()]
    return {"kind": "bars", "title": title, "caption": caption, "x": dict(x), "names": list(names),
            "parts": segments}  # fmt: skip


def map_figure(
    title: str,
    caption: str,
    x: Mapping[str, str],
    y: Mapping[str, str],
    value: Mapping[str, str],
    grid: tuple[Sequence[Number], Sequence[Number], Sequence[Sequence[Number | None]]],
) -> Figure:
    """Return a map of values; `grid` is (xs, ys, a row of values for each y)."""
    xs, ys, rows = grid
    return {
        "kind": "map",
        "title": title,
        "caption": caption,
        "x": dict(x),
        "y": dict(y),
        "value": dict(value),
        "xs": list(xs),
        "ys": list(ys),
        "values": list(rows),
    }


def line(
    name: str,
    x: Sequence[Number],
    values: Sequence[Number | None],
    *,
    low: Sequence[Number | None] | None = None,
    high: Sequence[Number | None] | None = None,
    dashed: bool = False,
) -> dict[str, Any]:
    """Return a line without missing values, with a band from low to high."""
    indices = [index for index, value in enumerate(values) if value is not None]

    def select(column: Sequence[Any]) -> list[Any]:
        return [column[index] for index in indices]

    return {
        "name": name,
        "x": select(x),
        "mean": select(values),
        "low": select(values if low is None else low),
        "high": select(values if high is None else high),
        "dashed": dashed,
    }


def band(
    name: str,
    x: Sequence[Number],
    seeds: Sequence[Sequence[Number | None]],
    *,
    dashed: bool = False,
    average: Callable[[Sequence[float]], float] = mean,
) -> dict[str, Any]:
    """Return a line with average, lowest and highest over seeds, where all have a value."""
    columns: list[list[float]] = [
        [] if None in column else [float(value or 0) for value in column]
        for column in zip(*seeds, strict=True)
    ]
    return line(
        name,
        x,
        [average(column) if column else None for column in columns],
        low=[min(column, default=None) for column in columns],
        high=[max(column, default=None) for column in columns],
        dashed=dashed,
    )
