"""Lines and dots: how values run along something, and how they lie beside one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from plusx.report.labels import ASIDE, Box, Label, beside_points, label_ends, label_points
from plusx.report.scales import Axis, Scale, scale, ticks_at


LABEL = 118.0  # the widest label at a line's end
TALLEST = 400.0
MOST_MARKED = 16  # points of a line that are shown one by one
DASHES = (4.0, 1.8)
BOTTOM, TOP = 44.0, 24.0  # room for what is written along x, and above y


@dataclass(frozen=True)
class Line:
    """One thing over another: the mean over its seeds, between the lowest and the highest."""

    name: str
    colour: int  # which of the page's colours, from 0
    x: tuple[float, ...]
    mean: tuple[float | None, ...]  # None: a gap
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """One thing's values, their mean and the interval that is claimed for it, if one is."""

    name: str
    colour: int
    values: tuple[float | None, ...]
    mean: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Key:
    """What a colour stands for, where that is not written at the thing itself."""

    name: str
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Drawn:
    """A drawing, and the legend that has to stand beneath it; it is empty where names stand in
    the drawing."""

    svg: str
    height: float
    legend: tuple[Key, ...] = ()


def draw_lines(
    lines: Sequence[Line], x: Axis, y: Axis, *, key: str, level: float | None = None
) -> Drawn:
    """Lines with the band between their lowest and highest values; `level` is a dotted rule.

    Names stand at the ends of the lines, or beneath the drawing if they are too many or too long.
    """
    shown = [line for line in lines if line.x]
    # Lines of one point each are points: they are labelled where they are.
    scattered = all(len(line.x) == 1 for line in shown)
    across = scale(x, [value for line in shown for value in line.x], tight=not scattered)
    upward = scale(
        y,
        [v for line in shown for part in (line.mean, line.low, line.high) for v in part]
        + ([] if level is None else [level]),
    )
    named = [wrapped(clean(line.name), LABEL, bold=True) for line in shown]
    tall = sum(LINE * len(name) + 2.0 for name in named)
    direct = tall <= TALLEST - BOTTOM - TOP and not any(name[-1].endswith("…") for name in named)
    height = max(HEIGHT, tall + BOTTOM + TOP) if direct else HEIGHT

    def labels(right: float) -> tuple[Box, list[Label]]:
        box = Box(_left(upward), BOTTOM, WIDTH - right, height - TOP)
        pairs = zip(shown, named, strict=True)
        return box, [
            Label(name, series(line.colour), *_end(line, box, across, upward))
            for line, name in pairs
        ]

    box, placed = labels(16.0)
    beside = scattered and direct and beside_points(box, placed)
    if direct and not beside:
        box, placed = labels(7.0 + ASIDE + max((each.width for each in placed), default=0.0))
    ticks = across if scattered else _few_ticks(x, across, shown, box.right - box.left)
    with drawing(height) as figure:
        axes = panel(figure, box.left, BOTTOM, box.right - box.left, box.top - BOTTOM)
        for line in shown:
            _draw_line(axes, line, across, upward)
        along(axes, "x", ticks, grid=False)
        along(axes, "y", upward)
        if level is not None and math.isfinite(upward.place(level)):
            axes.axhline(upward.place(level), color=MUTED, linewidth=0.9, dashes=(1.5, 2.5))
        _titles(figure, axes, x, y)
        if not shown:
            _nothing(axes)
        elif direct:
            (label_points if beside else label_ends)(figure, box, placed)
        keys = () if direct else tuple(Key(clean(e.name), e.colour, e.dashed) for e in shown)
        return Drawn(svg(figure, key), height, keys)


def draw_dots(groups: Sequence[Dots], x: Axis, *, key: str) -> Drawn:
    """Every value as a dot, a row for each thing, over the interval that is claimed for it."""
    across = scale(
        x, [v for each in groups for v in (*each.values, each.mean, *(each.interval or ()))]
    )
    names = [wrapped(clean(each.name), 124.0) for each in groups]
    left = 22.0 + max((extent(part) for name in names for part in name), default=0.0)
    sizes = [LINE * len(name) + 12.0 for name in names]
    high = max(sum(sizes), 60.0)
    feet = [high - sum(sizes[:index]) - size / 2 for index, size in enumerate(sizes)]
    with drawing(high + BOTTOM + 8.0) as figure:
        axes = panel(figure, left, BOTTOM, WIDTH - left - 22.0, high)
        for each, foot in zip(groups, feet, strict=True):
            _draw_dots(axes, each, foot, across)
        along(axes, "x", across)
        axes.set_ylim(0, high)
        axes.set_yticks([])
        for name, foot in zip(names, feet, strict=True):
            for row, part in enumerate(name):
                middle = BOTTOM + foot + LINE * ((len(name) - 1) / 2 - row)
                write(figure, left - 12.0, middle, part, colour=INK, align="right")
        if not groups:
            _nothing(axes)
        write(figure, WIDTH - 22.0, 10.0, heading(x.title), align="right")
        return Drawn(svg(figure, key), high + BOTTOM + 8.0)


def _draw_line(axes: Axes, line: Line, across: Scale, upward: Scale) -> None:
    colour = series(line.colour)
    places, means = across.places(line.x), upward.places(line.mean)
    low, high = upward.places(line.low), upward.places(line.high)
    if any(a != b for a, b in zip(low, high, strict=True)):
        axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)
    if len(places) == 1:
        axes.plot((places[0], places[0]), (low[0], high[0]), color=colour, alpha=0.4, lw=3)
    axes.plot(
        places,
        means,
        color=colour,
        linewidth=1.9,
        solid_capstyle="round",
        dashes=DASHES if line.dashed else (None, None),
        clip_on=False,
    )
    known = [not math.isnan(mean) for mean in means]
    alone = [
        here and not any(known[max(0, index - 1) : index]) and not any(known[index + 1 : index + 2])
        for index, here in enumerate(known)
    ]
    marked = known if len(line.x) <= MOST_MARKED else alone
    points = [(a, b) for a, b, mark in zip(places, means, marked, strict=True) if mark]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4.6, clip_on=False)


def _draw_dots(axes: Axes, each: Dots, foot: float, across: Scale) -> None:
    colour = series(each.colour)
    if each.interval is not None:
        ends = across.places(each.interval)
        axes.plot(ends, (foot, foot), color=colour, linewidth=9, alpha=0.22, solid_capstyle="butt")
    places = [place for place in across.places(each.values) if not math.isnan(place)]
    feet = [foot] * len(places)
    axes.plot(
        places, feet, "o", color=colour, markersize=5.5, alpha=0.75, markeredgewidth=0,
        clip_on=False,
    )  # fmt: skip
    if each.mean is not None:
        mean = across.place(each.mean)
        axes.plot((mean, mean), (foot - 7, foot + 7), color=colour, linewidth=2, clip_on=False)


def _left(upward: Scale) -> float:
    """The margin that the texts along y need."""
    return 14.0 + max((extent(text) for _, text in upward.ticks), default=0.0)


def _titles(figure: Figure, axes: Axes, x: Axis, y: Axis) -> None:
    """What the axes show: y above its numbers, read as a line; x beneath its end."""
    left, right = (float(axes.transAxes.transform((side, 0))[0]) for side in (0, 1))
    write(figure, 4.0, figure.bbox.height - 9.0, heading(y.title))
    title = heading(x.title)
    write(figure, max(right, left + extent(title)), 10.0, title, align="right")


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no values", color=MUTED, ha="center", transform=axes.transAxes)


def _few_ticks(axis: Axis, across: Scale, lines: Sequence[Line], width: float) -> Scale:
    """Ticks at the values themselves where they are few (depths, shares of the data), and at the
    first and the last of whole numbers (blocks, epochs)."""
    values = sorted({value for line in lines for value in line.x})
    if len(values) < 2 or across.high == across.low:
        return across
    plain = all(float(f"{value:.3g}") == value for value in values)
    ends = ticks_at(axis, across, [values[0], values[-1]]).ticks
    if len(values) <= 8 and plain:
        wanted = [*ends, *ticks_at(axis, across, values).ticks]
    elif axis.kind == "linear" and all(value == int(value) for value in values):
        wanted = [*ends, *across.ticks]
    else:
        return across
    kept: list[tuple[float, float, str]] = []
    for place, text in wanted:
        if math.isnan(place):
            continue
        middle = (place - across.low) / (across.high - across.low) * width
        half = extent(text) / 2 + 3
        if all(abs(middle - other) >= half + extent(said) / 2 + 3 for other, _, said in kept):
            kept.append((middle, place, text))
    ticks = tuple((place, text) for _, place, text in sorted(kept))
    return Scale(across.low, across.high, ticks, across.logarithmic, across.foot)


def _end(line: Line, box: Box, across: Scale, upward: Scale) -> tuple[float, float]:
    """Where a line ends, in units; one without values at the lower right corner."""
    pairs = list(zip(across.places(line.x), upward.places(line.mean), strict=True))
    known = [pair for pair in pairs if not math.isnan(pair[0] + pair[1])]
    x, y = known[-1] if known else (across.high, upward.low)
    right = (x - across.low) / (across.high - across.low)
    up = (y - upward.low) / (upward.high - upward.low)
    return box.left + right * (box.right - box.left), box.bottom + up * (box.top - box.bottom)
