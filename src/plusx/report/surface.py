"""A surface over two directions, as filled contours with the scale of their shades beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plusx.report.drawing import (
    INK,
    MUTED,
    PAPER,
    SHADES,
    TEXT,
    WIDTH,
    along,
    drawing,
    extent,
    heading,
    panel,
    shade,
    svg,
    write,
)
from plusx.report.plots import BOTTOM, TOP, Drawn
from plusx.report.scales import Axis, Scale, scale


@dataclass(frozen=True)
class Surface:
    """Values over a grid: `values[row][column]` lies at `ys[row]` and `xs[column]`."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def known(self) -> list[tuple[float, float, float]]:
        """Every known value as (value, x, y)."""
        return [
            (value, x, y)
            for y, row in zip(self.ys, self.values, strict=True)
            for x, value in zip(self.xs, row, strict=True)
            if value is not None and math.isfinite(value)
        ]


def draw_surface(
    surface: Surface,
    x: Axis,
    y: Axis,
    value: Axis,
    *,
    key: str,
    reach: tuple[float, ...] = (),
) -> Drawn:
    """Filled contours; a cross at the lowest value, and what is not known left blank.

    The scale of the shades holds the values in `reach` too, so that surfaces can be compared.
    """
    across, upward = (
        scale(axis, ends, tight=True) for axis, ends in ((x, surface.xs), (y, surface.ys))
    )
    known = surface.known
    levels = _levels(value, [*(each[0] for each in known), *reach])
    right = 44.0 + max((extent(text) for _, text in levels.ticks), default=0.0)
    left = 14.0 + max((extent(text) for _, text in upward.ticks), default=0.0)
    width = WIDTH - left - right
    wide, tall = across.high - across.low, upward.high - upward.low
    alike = (x.kind, y.kind) == ("linear", "linear") and 0.5 <= tall / wide <= 2
    high = width * (tall / wide if alike else 1.0)
    with drawing(high + BOTTOM + TOP) as figure:
        axes = panel(figure, left, BOTTOM, width, high)
        if known:
            _contours(axes, surface, across, upward, levels)
            _lowest(axes, known, across, upward, value)
            _shades(figure, levels, left + width + 18.0, BOTTOM, high)
        else:
            axes.text(0.5, 0.5, "no values", color=MUTED, ha="center", transform=axes.transAxes)
        along(axes, "x", across, grid=False)
        along(axes, "y", upward, grid=False)
        write(figure, 4.0, high + BOTTOM + TOP - 9.0, heading(y.title))
        title = heading(value.title)
        write(figure, WIDTH - 4.0, high + BOTTOM + TOP - 9.0, title, align="right")
        write(figure, left + width, 10.0, heading(x.title), align="right")
        return Drawn(svg(figure, key), high + BOTTOM + TOP)


def _levels(axis: Axis, known: Sequence[float]) -> Scale:
    """The bounds of the shades as ticks: at most SHADES of them between."""
    found = scale(axis, known, most=SHADES - 1)
    ends = [place for place, _ in found.ticks]
    if found.logarithmic:
        ticks = [(found.low, ""), *found.ticks, (found.high, "")]
    elif axis.kind == "share":
        ticks = list(found.ticks)
        if not ends or ends[-1] < found.high:
            ticks.append((found.high, ""))
    else:
        ticks = list(found.ticks)
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if kept and tick[0] - kept[-1][0] < 1e-9 * (found.high - found.low):
            kept[-1] = (tick[0], kept[-1][1] or tick[1])
        else:
            kept.append(tick)
    while len(kept) > SHADES + 1:
        kept = [kept[0], *kept[1:-1:2], kept[-1]]
    return Scale(found.low, found.high, tuple(kept), found.logarithmic, found.foot)


def _shade_of(index: int, count: int) -> str:
    """The shade of a band: the whole range is used however few there are."""
    return shade(round(index * (SHADES - 1) / max(1, count - 1)))


def _contours(axes: Axes, surface: Surface, across: Scale, upward: Scale, levels: Scale) -> None:
    xs, ys = np.array(across.places(surface.xs)), np.array(upward.places(surface.ys))
    heights = np.array([levels.places(row) for row in surface.values], dtype=float)
    # A grid with one row or column is a strip as wide as the axis.
    if len(xs) == 1:
        xs, heights = np.array([across.low, across.high]), np.repeat(heights, 2, axis=1)
    if len(ys) == 1:
        ys, heights = np.array([upward.low, upward.high]), np.repeat(heights, 2, axis=0)
    bounds = [place for place, _ in levels.ticks]
    masked = np.ma.masked_invalid(np.clip(heights, bounds[0], bounds[-1]))
    count = len(bounds) - 1
    fills = [_shade_of(index, count) for index in range(count)]
    drawn = axes.contourf(xs, ys, masked, levels=bounds, colors=fills, antialiased=True)
    drawn.set_edgecolor("face")  # no seams between the shades
    drawn.set_linewidth(0.6)
    axes.contour(xs, ys, masked, levels=bounds[1:-1], colors=[PAPER], linewidths=0.5, alpha=0.55)


def _lowest(
    axes: Axes,
    known: Sequence[tuple[float, float, float]],
    across: Scale,
    upward: Scale,
    value: Axis,
) -> None:
    low, x, y = min(known)
    place = across.place(x), upward.place(y)
    if any(map(math.isnan, place)):
        return
    axes.plot(*place, "+", color=INK, markersize=9, markeredgewidth=1.4, clip_on=False)
    left = place[0] > across.low + 0.6 * (across.high - across.low)
    axes.annotate(
        f"lowest {value.said(low)}", place, (-7 if left else 7, 9), textcoords="offset points",
        ha="right" if left else "left", color=INK, fontsize=TEXT,
    )  # fmt: skip


def _shades(figure: Figure, levels: Scale, left: float, bottom: float, high: float) -> None:
    """The scale: the shades one over another, each bound with its value."""
    bounds = levels.ticks
    count = len(bounds) - 1
    size = high / count
    for index in range(count):
        place = (left / WIDTH, (bottom + index * size) / figure.bbox.height)
        figure.add_artist(
            Rectangle(
                place,
                13.0 / WIDTH,
                size / figure.bbox.height,
                facecolor=_shade_of(index, count),
                transform=figure.transFigure,
                linewidth=0,
            )
        )
    for index, (_, text) in enumerate(bounds):
        if text:
            write(figure, left + 19.0, bottom + index * size, text)
