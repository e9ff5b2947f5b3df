"""Bars: one value for each of several things, for one group of them or for more."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plusx.report import values
from plusx.report.drawing import (
    HEIGHT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    along,
    clean,
    drawing,
    extent,
    heading,
    panel,
    series,
    svg,
    wrapped,
    write,
)
from plusx.report.plots import BOTTOM, Drawn
from plusx.report.scales import Axis, Scale, scale


MOST_BESIDE = 60  # bars that can stand in one panel; more go to a panel for each group
MOST_WRITTEN = 16  # bars whose value is written at their end
MOST_ROWS = 60  # labels that are all written, one under another
HEAD = 36.0  # above a panel: what y is, and whose bars they are


@dataclass(frozen=True)
class Bars:
    """One group's value for each label; None where there is none."""

    name: str
    colour: int
    labels: tuple[str, ...]
    values: tuple[float | None, ...]


def draw_bars(groups: Sequence[Bars], x: Axis, y: Axis, *, key: str) -> Drawn:
    """Upright bars where the labels count something (block 1, block 2, ...), lying ones else.

    A value that is not known has a small cross in its place.
    """
    labels = list(dict.fromkeys(clean(label) for group in groups for label in group.labels))
    counted = len(labels) > 2 and all(
        len({re.sub(r"\d+", "#", clean(label)) for label in group.labels}) <= 1 for group in groups
    )
    short = sum(extent(label) + 8 for label in labels) <= WIDTH - 70
    if counted or (short and labels):
        return _upright(groups, x, y, key=key)
    return _lying(groups, labels, x, y, key=key)


def _upright(groups: Sequence[Bars], x: Axis, y: Axis, *, key: str) -> Drawn:
    upward = scale(y, [v for group in groups for v in group.values], from_zero=y.kind != "log")
    several = len({group.labels for group in groups}) > 1
    count = sum(len(group.labels) for group in groups)
    parts = [[group] for group in groups] if several or count > MOST_BESIDE else [list(groups)]
    tall = HEIGHT - BOTTOM - HEAD if len(parts) == 1 else 120.0
    height = BOTTOM + len(parts) * (tall + HEAD) + (len(parts) - 1) * 22.0
    left = 14.0 + max((extent(text) for _, text in upward.ticks), default=0.0)
    width = WIDTH - left - 8.0
    # Panels beneath one another have the same room for a label, so that like stands over like.
    longest = max(len(dict.fromkeys(label for g in part for label in g.labels)) for part in parts)
    with drawing(height) as figure:
        top = height
        for number, part in enumerate(parts):
            top -= HEAD
            axes = panel(figure, left, top - tall, width, tall)
            labels = list(dict.fromkeys(clean(label) for group in part for label in group.labels))
            _stand(axes, part, labels, upward)
            axes.set_xlim(-0.6, longest - 0.4)
            _label_some(axes, labels, width / (longest + 0.2))
            along(axes, "y", upward)
            if number == 0:
                write(figure, 4.0, height - 9.0, heading(y.title))
            _name(figure, part, left, top + 11.0, len(groups) > 1)
            top -= tall + 22.0
        write(figure, WIDTH - 8.0, 10.0, heading(x.title), align="right")
        return Drawn(svg(figure, key), height)


def _stand(axes: Axes, groups: Sequence[Bars], labels: Sequence[str], upward: Scale) -> None:
    thick = (0.76 if len(labels) > 1 else 0.3) / len(groups)
    foot = upward.low if upward.logarithmic else 0.0
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * thick
        for label, value in zip(group.labels, group.values, strict=True):
            middle = labels.index(clean(label)) + shift
            place = upward.place(value)
            if math.isnan(place):
                axes.plot([middle], [foot], "x", color=MUTED, markersize=4, clip_on=False)
            else:
                axes.bar(middle, place - foot, thick * 0.9, bottom=foot, color=series(group.colour))
    if upward.low < 0 < upward.high and not upward.logarithmic:
        axes.axhline(0, color=MUTED, linewidth=0.8)


def _name(figure: Figure, part: Sequence[Bars], left: float, height: float, named: bool) -> None:
    """Whose bars they are, in their colour, over the panel."""
    if not named:
        return
    place = left
    for group in part:
        name = clean(group.name)
        write(figure, place, height, name, colour=series(group.colour), bold=True)
        place += extent(name, bold=True) + 16.0


def _label_some(axes: Axes, labels: Sequence[str], room: float) -> None:
    """As many labels as there is room for, evenly: they count something."""
    widest = max((extent(label) for label in labels), default=0.0) + 7.0
    step = max(1, math.ceil(widest / room))
    step = next((n for n in (1, 2, 3, 5, 10, 20, 50, 100) if n >= step), step)
    shown = list(range(0, len(labels), step))
    axes.set_xticks(shown, [labels[index] for index in shown])


def _lying(groups: Sequence[Bars], labels: Sequence[str], x: Axis, y: Axis, *, key: str) -> Drawn:
    across = scale(y, [v for group in groups for v in group.values], from_zero=y.kind != "log")
    names = [wrapped(label, 132.0, most=2) for label in labels]
    left = 20.0 + max((extent(part) for name in names for part in name), default=0.0)
    written = len(labels) * len(groups) <= MOST_WRITTEN
    bar = 13.5 if written else 11.0
    sizes = [max(LINE * len(name), bar * len(groups)) + 9.0 for name in names]
    high = max(sum(sizes), 40.0)
    top = 30.0 if len(groups) > 1 else 14.0
    right = 56.0 if written else 18.0
    with drawing(high + BOTTOM + top) as figure:
        axes = panel(figure, left, BOTTOM, WIDTH - left - right, high)
        foot = across.low if across.logarithmic else 0.0
        middle = high
        for label, name, size in zip(labels, names, sizes, strict=True):
            middle -= size / 2
            for number, group in enumerate(groups):
                place = middle + ((len(groups) - 1) / 2 - number) * bar
                known = dict(zip(map(clean, group.labels), group.values, strict=True))
                if label in known:
                    _lay(axes, known[label], place, bar * 0.84, foot, across, group, y, written)
            for row, part in enumerate(name):
                line = BOTTOM + middle + LINE * ((len(name) - 1) / 2 - row)
                write(figure, left - 10.0, line, part, colour=INK, align="right")
            middle -= size / 2
        along(axes, "x", across)
        axes.set_ylim(0, high)
        axes.set_yticks([])
        if across.low < 0 < across.high and not across.logarithmic:
            axes.axvline(0, color=MUTED, linewidth=0.8)
        _name(figure, groups, left, BOTTOM + high + 14.0, len(groups) > 1)
        write(figure, WIDTH - right, 10.0, heading(y.title), align="right")
        if not labels:
            axes.text(0.5, 0.5, "no values", color=MUTED, ha="center", transform=axes.transAxes)
        return Drawn(svg(figure, key), high + BOTTOM + top)


def _lay(
    axes: Axes,
    value: float | None,
    place: float,
    thick: float,
    foot: float,
    across: Scale,
    group: Bars,
    y: Axis,
    written: bool,
) -> None:
    end = across.place(value)
    if value is None or math.isnan(end):
        axes.plot([foot], [place], "x", color=MUTED, markersize=4, clip_on=False)
        return
    axes.barh(place, end - foot, thick, left=foot, color=series(group.colour))
    if written:
        text = y.said(value)
        away = "left" if end >= foot else "right"
        axes.annotate(
            text, (end, place), (5 if away == "left" else -5, 0), textcoords="offset points",
            color=MUTED, va="center_baseline", ha=away, annotation_clip=False,
        )  # fmt: skip


def said_label(group: Bars, index: int, y: Axis) -> str:
    """One bar in words."""
    value = group.values[index]
    return f"{group.labels[index]} {values.ABSENT if value is None else y.said(value)}"
