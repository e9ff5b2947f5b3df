"""Lines and dots: how values run along something, and how they lie beside one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import IdentityTransform

from plusx.report.drawing import (
    HEIGHT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    along,
    apart,
    clean,
    drawing,
    extent,
    panel,
    series,
    svg,
    wrapped,
    write,
)
from plusx.report.scales import Axis, Scale, scale, ticks_at


ASIDE = 18.0  # from the edge of the panel to the names at its right
LABEL = 118.0  # the widest label at a line's end
TALLEST = 400.0
MOST_MARKED = 16  # points of a line that are shown one by one
DASHES = (4.0, 1.8)
_UNITS = IdentityTransform()
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
    across = scale(x, [value for line in shown for value in line.x], tight=True)
    upward = scale(
        y,
        [v for line in shown for part in (line.mean, line.low, line.high) for v in part]
        + ([] if level is None else [level]),
    )
    labels = [wrapped(clean(line.name), LABEL, bold=True) for line in shown]
    tall = sum(LINE * len(label) + 2.0 for label in labels)
    direct = tall <= TALLEST - BOTTOM - TOP and not any(label[-1].endswith("…") for label in labels)
    right = 16.0
    if direct:
        right += ASIDE - 9.0
        right += max((extent(part, bold=True) for label in labels for part in label), default=0.0)
    height = max(HEIGHT, tall + BOTTOM + TOP) if direct else HEIGHT
    left = _left(upward)
    across = _few_ticks(x, across, shown, WIDTH - left - right)
    with drawing(height) as figure:
        axes = panel(figure, left, BOTTOM, WIDTH - left - right, height - BOTTOM - TOP)
        for line in shown:
            _draw_line(axes, line, across, upward)
        along(axes, "x", across, grid=False)
        along(axes, "y", upward)
        if level is not None and math.isfinite(upward.place(level)):
            axes.axhline(upward.place(level), color=MUTED, linewidth=0.9, dashes=(1.5, 2.5))
        _titles(figure, axes, x, y)
        if not shown:
            _nothing(axes)
        elif direct:
            _label_ends(figure, axes, shown, labels, across, upward)
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
        write(figure, WIDTH - 22.0, 10.0, clean(x.title), align="right")
        return Drawn(svg(figure, key), high + BOTTOM + 8.0)


def _draw_line(axes: Axes, line: Line, across: Scale, upward: Scale) -> None:
    colour = series(line.colour)
    places, means = across.places(line.x), upward.places(line.mean)
    low, high = upward.places(line.low), upward.places(line.high)
    if any(a != b for a, b in zip(low, high, strict=True)):
        axes.fill_between(places, low, high, color=colour, alpha=0.16, linewidth=0)
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
    write(figure, 4.0, figure.bbox.height - 9.0, clean(y.title) if y.title else "")
    title = clean(x.title) if x.title else ""
    write(figure, max(right, left + extent(title)), 10.0, title, align="right")


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no values", color=MUTED, ha="center", transform=axes.transAxes)


def _few_ticks(axis: Axis, across: Scale, lines: Sequence[Line], width: float) -> Scale:
    """Ticks at the values themselves where they are few (depths, shares of the data), and at the
    first and the last of whole numbers (blocks, epochs)."""
    values = sorted({value for line in lines for value in line.x})
    if len(values) < 2 or across.high == across.low:
        return across
    ends = ticks_at(axis, across, [values[0], values[-1]]).ticks
    if len(values) <= 8:
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


def _label_ends(
    figure: Figure,
    axes: Axes,
    lines: Sequence[Line],
    labels: Sequence[list[str]],
    across: Scale,
    upward: Scale,
) -> None:
    """The name of each line to the right of its end, moved apart where they would touch."""
    ends = [_end(line, axes, across, upward) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: ends[index][1])
    bottom, top = (float(axes.transAxes.transform((0, y))[1]) for y in (0, 1))
    edge = float(axes.transAxes.transform((1, 0))[0])
    sizes = [LINE * len(labels[index]) + 2.0 for index in order]
    feet = apart([ends[index][1] for index in order], sizes, bottom - LINE / 2, top + LINE / 2)
    for index, foot in zip(order, feet, strict=True):
        colour, (right, height) = series(lines[index].colour), ends[index]
        if edge - right > 12 or abs(foot - height) > LINE / 2:
            ends_at = (right + 4, edge + ASIDE - 3), (height, foot)
            figure.add_artist(Line2D(*ends_at, color=colour, lw=0.7, alpha=0.6, transform=_UNITS))
        for row, part in enumerate(labels[index]):
            middle = foot + LINE * ((len(labels[index]) - 1) / 2 - row)
            write(figure, edge + ASIDE, middle, part, colour=colour, bold=True)


def _end(line: Line, axes: Axes, across: Scale, upward: Scale) -> tuple[float, float]:
    """Where a line ends, in units; one without values at the lower right corner."""
    pairs = list(zip(across.places(line.x), upward.places(line.mean), strict=True))
    known = [pair for pair in pairs if not math.isnan(pair[0] + pair[1])]
    if not known:
        x, y = axes.transAxes.transform((1, 0))
    else:
        x, y = axes.transData.transform(known[-1])
    return float(x), float(y)
