"""Drawing of the figures of a result by matplotlib, as SVG elements of an HTML page.

A figure is a mapping with "kind", "title" and "caption", built by `report.figures`:

    lines  x, y, lines: name, x, mean, low, high, dashed; level (of a dotted line) or None
    dots   x, groups: name, values, mean, interval or None
    points x, y, groups: name, x, values; lines as above, drawn through the points or beside them
    bars   x, names, parts: name, values (one for each of the names)
    map    x, y, value, xs, ys, values (rows of ys)

An axis is a mapping with "title" and "scale": linear, log or share.
"""

import io
import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    SymmetricalLogLocator,
)

from plusx.errors import UserError
from plusx.report import values
from plusx.report.page import Cell, Column, Table


WIDTH, HEIGHT = 400.0, 250.0  # points; the page scales them
TEXT = 11.5
LEGEND_ROW = 15.0  # points
BAR = 19.0  # points, with its gap
LONGEST_NAME = 46  # characters of a name in a legend
MAX_MARKERS = 16  # points of a line that is drawn with markers
MAX_ROWS = 200  # in the table below a figure; of more, every second, third, ... is shown
LEVELS = 12  # of a map
SCALES = ("linear", "log", "share")

# placeholders, replaced by variables of the style sheet for light and dark mode
INK, MUTED, RULE, PAPER = "#a1c301", "#a1c302", "#a1c303", "#a1c304"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
}
# (shallow, deep): contrast of at least 3:1 in light and dark mode
HUES = (
    ("#ec6719", "#b0490e"),
    ("#3994e3", "#1a6cb3"),
    ("#2fa369", "#22774c"),
    ("#b17acc", "#9346b9"),
    ("#8a9097", "#646971"),
    ("#da6b93", "#bf3064"),
    ("#1e9eac", "#16747e"),
    ("#a09028", "#756a1d"),
)
# part of a word: plain20, drop.3, wrn28_10; a number by itself is none ("task 2")
_NUMBER = re.compile(r"(?:(?<=[^\s\d.])|(?<=[^\s\d]\.))\d+(?:\.\d+)?")

Spec = Mapping[str, Any]
Number = int | float  # as JSON gives them: 1.0 is written as 1


@dataclass(frozen=True)
class Chart:
    """A figure on a page: drawing, texts and table of values."""

    title: str
    caption: str
    alternative: str
    svg: str
    numbers: Table
    every: int  # 2: the table has every second row


def charts(figures: Sequence[Spec]) -> list[Chart]:
    """Draw the figures of a page.

    Raises UserError for an unknown kind or scale, or values that do not fit their axis.
    """
    shared = shared_colours(figures)
    return [
        chart(figure, shared or colours(names(figure)), f"f{number}", figures)
        for number, figure in enumerate(figures)
    ]


def shared_colours(figures: Sequence[Spec]) -> dict[str, str]:
    """Return the colours of names that are the same in all figures of a page; {} if there are more
    families than hues, so that each figure has colours of its own."""
    shared = colours([name for figure in figures for name in names(figure)])
    return shared if len({family(name) for name in shared}) <= len(HUES) else {}


def chart(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec] = ()
) -> Chart:
    """Draw one figure.

    `key` makes its ids unique on the page. Maps of the same quantity in `figures` share a scale.
    """
    kinds = {"lines": _lines, "dots": _dots, "points": _points, "bars": _bars, "map": _map}
    if figure["kind"] not in kinds:
        raise UserError(
            f"the kind of a figure is one of {', '.join(kinds)}, not {figure['kind']!r}"
        )
    for axis in (figure[part] for part in ("x", "y", "value") if part in figure):
        if axis["scale"] not in SCALES:
            allowed = ", ".join(SCALES)
            raise UserError(f"the scale of an axis is one of {allowed}, not {axis['scale']!r}")
    drawing, numbers, every = kinds[figure["kind"]](figure, palette, key, figures)
    return Chart(
        title=figure["title"],
        caption=figure["caption"],
        alternative=alternative(figure),
        svg=drawing,
        numbers=numbers,
        every=every,
    )


def names(figure: Spec) -> list[str]:
    """Return the names in a figure that have colours."""
    kinds = ("lines", "groups", "parts")
    return [str(entry["name"]) for kind in kinds for entry in figure.get(kind, ())]


def family(name: str) -> str:
    """Return a name without the numbers in its words: plain20 and plain56 are one family, task 1
    and task 2 are two."""
    return _NUMBER.sub("", name)


def colours(series: Sequence[str]) -> dict[str, str]:
    """Return a distinct colour for each name: one hue for a family, darker for deeper networks.
    Families that share a hue have different shades of it, later ones the lighter."""
    families = list(dict.fromkeys(family(name) for name in series))
    fixed = {"plain": 0, "resnet": 1, "validation": 1, "training": 4}
    others = [other for other in families if other not in fixed]
    hues = fixed | {other: (2 + index) % len(HUES) for index, other in enumerate(others)}
    by_hue: dict[int, list[str]] = {}  # from light to dark
    for name in sorted(set(series), key=lambda name: (-families.index(family(name)), _depth(name))):
        by_hue.setdefault(hues[family(name)], []).append(name)
    colour_of = {}
    for hue, same_hue in by_hue.items():
        light, dark = (np.array(matplotlib.colors.to_rgb(end)) for end in HUES[hue])
        for name, share in zip(same_hue[::-1], np.linspace(1, 0, len(same_hue)), strict=True):
            colour_of[name] = matplotlib.colors.to_hex(light + (dark - light) * share)
    return colour_of


def alternative(figure: Spec) -> str:
    """Return the alternative text of a figure: the ends of its lines, or its values."""
    parts = []
    if figure["kind"] == "lines":
        x, y = figure["x"], figure["y"]
        for line in figure["lines"]:
            points = [p for p in zip(line["x"], line["mean"], strict=True) if p[1] is not None]
            ends = [points[0], points[-1]] if len(points) > 1 else points
            at = [f"{text(y, mean)} at {x['title']} {text(x, position)}" for position, mean in ends]
            parts += [f"{line['name']} {', '.join(at)}"] if at else []
    elif figure["kind"] == "points":
        for group in figure["groups"]:
            pairs = zip(group["x"], group["values"], strict=True)
            best = sorted((value, position) for position, value in pairs)
            ends = [best[0], best[-1]] if len(best) > 1 else best
            at = [f"{text(figure['y'], v)} at {figure['x']['title']} {text(figure['x'], p)}"
                  for v, p in ends]  # fmt: skip
            parts += [f"{group['name']} {', '.join(at)}"] if at else []
    elif figure["kind"] == "dots":
        for group in figure["groups"]:
            shown = [text(figure["x"], value) for value in group["values"] if value is not None]
            parts.append(f"{group['name']} {', '.join(shown)}")
    elif figure["kind"] == "bars":
        for index, name in enumerate(figure["names"]):
            whole = sum(part["values"][index] for part in figure["parts"])
            parts.append(f"{name} {text(figure['x'], whole)}")
    else:
        finite = [value for row in figure["values"] for value in row if value is not None]
        if finite:
            low, high = (text(figure["value"], end) for end in (min(finite), max(finite)))
            parts = [f"{figure['value']['title']} between {low} and {high}"]
    return f"{figure['title']}: {'; '.join(parts) or 'no values'}."


def text(axis: Spec, value: Number) -> str:
    """Format a value of an axis with its unit."""
    if axis["scale"] == "share":
        return f"{values.percent(value)} %"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else values.number(value)


def _lines(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec]
) -> tuple[str, Table, int]:
    x, y = figure["x"], figure["y"]
    shown = [line for line in figure["lines"] if line["x"]]
    for line, part in ((line, part) for line in shown for part in ("mean", "low", "high")):
        if len(line[part]) != len(line["x"]):
            raise UserError(f"a figure has {len(line['x'])} positions and {len(line[part])} values")
    longest = max((len(_short(line["name"])) for line in shown), default=0)
    columns = max(1, min(len(shown), int(WIDTH / (34 + 7.0 * longest))))
    with _drawing(HEIGHT + LEGEND_ROW * math.ceil(len(shown) / columns)) as plot:
        axes = _axes(plot)
        for line in shown:
            _line(axes, line, palette[str(line["name"])])
        if figure["level"] is not None:
            axes.axhline(figure["level"], color=MUTED, linewidth=0.9, dashes=(1.5, 2.5))
        every = [v for line in shown for part in ("mean", "low", "high") for v in line[part]]
        if figure["level"] is not None:
            every.append(figure["level"])
        _scale(axes, "x", x, [position for line in shown for position in line["x"]])
        _scale(axes, "y", y, every)
        axes.grid(True, axis="y", color=RULE, linewidth=0.8)
        _titles(axes, x, y)
        if shown:
            plot.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=11,
                         handlelength=1.6, columnspacing=1.2, labelspacing=0.3,
                         borderpad=0.2)  # fmt: skip
        drawing = _svg(plot, key)
    positions = sorted({float(position) for line in shown for position in line["x"]})
    step = -(-len(positions) // MAX_ROWS) or 1
    shown_rows = sorted(
        {*range(0, len(positions), step), *([len(positions) - 1] if positions else [])}
    )
    values_at = [dict(zip(map(float, line["x"]), line["mean"], strict=True)) for line in shown]
    rows = [
        [
            Cell(text(x, positions[i]), positions[i]),
            *(_cell(y, line_values.get(positions[i])) for line_values in values_at),
        ]
        for i in shown_rows
    ]
    heads = [Column(x["title"]), *(Column(str(line["name"]), _unit(y)) for line in shown)]
    return drawing, Table(figure["title"], heads, rows, cards=False), step


def _points(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec]
) -> tuple[str, Table, int]:
    x, y, groups, lines = (figure[part] for part in ("x", "y", "groups", "lines"))
    with _drawing(HEIGHT + LEGEND_ROW) as plot:
        axes = _axes(plot)
        for line in lines:
            _line(axes, line, palette[str(line["name"])])
        for group in groups:
            # a single point stands out
            size = 5.5 if len(group["x"]) > 1 else 8.5
            axes.plot(_numbers(group["x"]), _numbers(group["values"]), "o", markersize=size,
                      color=palette[str(group["name"])], alpha=0.75, markeredgewidth=0,
                      clip_on=False, zorder=3, label=_short(group["name"]))  # fmt: skip
        _scale(axes, "x", x, [position for entry in (*lines, *groups) for position in entry["x"]])
        heights = [value for group in groups for value in group["values"]]
        _scale(axes, "y", y, [*heights, *(value for line in lines for value in line["mean"])])
        axes.grid(True, axis="y", color=RULE, linewidth=0.8)
        _titles(axes, x, y)
        if len(groups) + len(lines) > 1:
            plot.legend(loc="outside lower left", ncols=len(groups) + len(lines), frameon=False,
                         fontsize=11, handlelength=1.6, columnspacing=1.2,
                         borderpad=0.2)  # fmt: skip
        drawing = _svg(plot, key)
    heads = [Column("", number=False), Column(x["title"]), Column(y["title"] or "value", _unit(y))]
    rows = [
        [Cell(str(group["name"])), Cell(text(x, position), position), _cell(y, value)]
        for group in groups
        for position, value in zip(group["x"], group["values"], strict=True)
    ]
    return drawing, Table(figure["title"], heads, rows, cards=False), 1


def _dots(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec]
) -> tuple[str, Table, int]:
    x, groups = figure["x"], figure["groups"]
    labels = [textwrap.fill(_clean(group["name"]), 24) for group in groups]
    heights = [13.0 * (label.count("\n") + 1) + 12.0 for label in labels]
    with _drawing(max(sum(heights), 60.0) + 44.0) as plot:
        axes = _axes(plot)
        middles = [sum(heights[i:]) - height / 2 for i, height in enumerate(heights)]
        for group, middle in zip(groups, middles, strict=True):
            colour = palette[str(group["name"])]
            if group["interval"] is not None:
                ends = group["interval"]
                axes.plot(ends, [middle] * 2, color=colour, linewidth=9, alpha=0.22,
                          solid_capstyle="butt")  # fmt: skip
            finite = _numbers(group["values"])
            axes.plot(finite, [middle] * len(finite), "o", color=colour, markersize=5.5,
                      alpha=0.75, markeredgewidth=0, clip_on=False)  # fmt: skip
            if group["mean"] is not None:
                axes.plot([group["mean"]] * 2, [middle - 7, middle + 7], color=colour, linewidth=2)
        axes.set_ylim(0, max(sum(heights), 60.0))
        axes.set_yticks(middles, labels, color=INK)
        every = [v for g in groups for v in (*g["values"], g["mean"], *(g["interval"] or ()))]
        _scale(axes, "x", x, every)
        axes.grid(True, axis="x", color=RULE, linewidth=0.8)
        _titles(axes, x, {"title": ""})
        drawing = _svg(plot, key)
    most = max((len(group["values"]) for group in groups), default=0)
    wide = any(group["interval"] for group in groups)
    heads = [Column("", number=False), Column("mean", _unit(x))]
    heads += [Column("from", _unit(x)), Column("to", _unit(x))] if wide else []
    heads += [Column(f"value {number}", _unit(x)) for number in range(1, most + 1)]
    rows = []
    for group in groups:
        ends = list(group["interval"] or (None, None)) if wide else []
        missing = [None] * (most - len(group["values"]))
        cells = [group["mean"], *ends, *group["values"], *missing]
        rows.append([Cell(str(group["name"])), *(_cell(x, value) for value in cells)])
    return drawing, Table(figure["title"], heads, rows, cards=False), 1


def _bars(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec]
) -> tuple[str, Table, int]:
    x, parts, labels = figure["x"], figure["parts"], [_short(name) for name in figure["names"]]
    with _drawing(max(BAR * len(labels), 80.0) + 44.0 + LEGEND_ROW) as plot:
        axes = _axes(plot)
        heights = np.arange(len(labels))[::-1]
        ends = np.zeros(len(labels))
        for part in parts:
            lengths = _numbers(part["values"])
            axes.barh(heights, lengths, 0.72, left=ends, color=palette[str(part["name"])],
                      label=_short(part["name"]))  # fmt: skip
            ends += lengths
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.set_yticks(heights, labels, color=INK)
        _scale(axes, "x", x, [0.0, *ends.tolist()])
        axes.set_xlim(0, None)
        axes.grid(True, axis="x", color=RULE, linewidth=0.8)
        _titles(axes, x, {"title": ""})
        plot.legend(loc="outside lower left", ncols=len(parts), frameon=False, fontsize=11,
                     handlelength=1.0, columnspacing=1.2, borderpad=0.2)  # fmt: skip
        drawing = _svg(plot, key)
    heads = [Column("", number=False), *(Column(str(part["name"]), _unit(x)) for part in parts)]
    rows = [
        [Cell(str(name)), *(_cell(x, part["values"][index]) for part in parts)]
        for index, name in enumerate(figure["names"])
    ]
    return drawing, Table(figure["title"], heads, rows, cards=False), 1


def _map(
    figure: Spec, palette: Mapping[str, str], key: str, figures: Sequence[Spec]
) -> tuple[str, Table, int]:
    x, y, value = figure["x"], figure["y"], figure["value"]
    xs, ys, rows = figure["xs"], figure["ys"], figure["values"]
    if len(rows) != len(ys) or any(len(row) != len(xs) for row in rows):
        raise UserError(f"{figure['title']}: {len(ys)} ys and {len(rows)} rows of values")
    heights = np.array([_numbers(row) for row in rows], dtype=float).reshape(len(ys), len(xs))
    similar = [f for f in figures if f["kind"] == "map" and f["value"] == value] or [figure]
    every = np.concatenate([np.ravel([_numbers(row) for row in f["values"]]) for f in similar])
    every = every[np.isfinite(every)]
    with _drawing(330.0) as plot:
        axes = _axes(plot)
        if np.isfinite(heights).any():
            _contours(plot, axes, xs, ys, heights, value, every)
        _titles(axes, x, y)
        drawing = _svg(plot, key)
    heads = [Column(f"{y['title']} \\ {x['title']}"), *(Column(values.number(p)) for p in xs)]
    cells = [
        [Cell(values.number(position), position), *(_cell(value, cell) for cell in row)]
        for position, row in zip(ys, rows, strict=True)
    ]
    return drawing, Table(figure["title"], heads, cells, cards=False), 1


def _line(axes: Axes, line: Spec, colour: str) -> None:
    """Draw a mean with a band from low to high, and markers on isolated points."""
    x, mean, low, high = (_numbers(line[part]) for part in ("x", "mean", "low", "high"))
    if len(x) == 1:
        axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=3)
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    finite = np.isfinite(mean)
    padded = np.pad(finite, 1)
    isolated = finite & ~padded[:-2] & ~padded[2:]
    marked = finite if len(x) <= MAX_MARKERS else isolated
    axes.plot(x, mean, color=colour, linewidth=1.9, marker="o", markersize=4.6,
              markevery=np.flatnonzero(marked).tolist(),
              linestyle=(0, (4.0, 1.8)) if line["dashed"] else "-",
              label=_short(line["name"]))  # fmt: skip


def _contours(
    plot: Figure,
    axes: Axes,
    xs: Sequence[Number],
    ys: Sequence[Number],
    heights: np.ndarray,
    value: Spec,
    every: np.ndarray,
) -> None:
    """Draw filled contours with a colour bar, and a cross at the lowest value."""
    low, high = float(every.min()), float(every.max())
    logarithmic = value["scale"] == "log" and low > 0
    if high - low <= 1e-9 * abs(high):
        low, high = low - (abs(low) / 10 or 1.0) * (not logarithmic), high + (abs(high) / 10 or 1.0)
    norm: Normalize = LogNorm(low, high) if logarithmic else Normalize(low, high)
    levels = (
        np.geomspace(low, high, LEVELS + 1)
        if logarithmic
        else MaxNLocator(LEVELS).tick_values(low, high)
    )
    grid_x, grid_y, grid = np.array(xs, float), np.array(ys, float), heights
    if len(xs) == 1:  # draw a single row or column as a strip
        grid_x, grid = grid_x + np.array([-0.5, 0.5]), np.repeat(grid, 2, axis=1)
    if len(ys) == 1:
        grid_y, grid = grid_y + np.array([-0.5, 0.5]), np.repeat(grid, 2, axis=0)
    masked = np.ma.masked_invalid(np.clip(grid, levels[0], levels[-1]))
    filled = axes.contourf(grid_x, grid_y, masked, levels=levels, norm=norm, cmap="viridis_r")
    filled.set_edgecolor("face")  # no seams between the colours
    bar = plot.colorbar(filled, ax=axes, ticks=levels, format=_formatter(value))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    if value["title"]:
        bar.ax.set_title(_clean(value["title"]), fontsize=TEXT, color=MUTED)
    row, column = divmod(int(np.nanargmin(heights)), len(xs))
    axes.plot(xs[column], ys[row], "+", color=INK, markersize=9, markeredgewidth=1.4)
    axes.annotate(f"lowest {text(value, float(heights[row, column]))}", (xs[column], ys[row]),
                  (0, 9), textcoords="offset points", ha="center", color=INK)  # fmt: skip


def _scale(axes: Axes, which: str, axis: Spec, shown: Sequence[Number | None]) -> None:
    """Set the scale, ticks and limits of an axis."""
    finite = [float(value) for value in shown if value is not None and math.isfinite(value)]
    line: Axis = getattr(axes, f"{which}axis")
    limits = getattr(axes, f"set_{which}lim")
    if not finite:
        limits(0, 1)
    positive = [value for value in finite if value > 0]
    lowest = min(positive, default=0.0)
    if axis["scale"] == "log" and finite:
        set_scale = getattr(axes, f"set_{which}scale")
        locator: Locator
        if len(positive) < len(finite):  # linear around zero
            set_scale("symlog", linthresh=lowest or 1.0, linscale=0.6)
            symmetric = SymmetricalLogLocator(linthresh=lowest or 1.0, base=10)
            symmetric.set_params(numticks=6)
            locator = symmetric
        else:
            set_scale("log")
            decades = math.log10(max(positive) / lowest)
            subs = (1, 2, 3, 5) if decades < 1.2 else (1, 3) if decades < 2.5 else (1,)
            locator = LogLocator(subs=subs, numticks=7)
            if decades < 0.5:  # too few multiples of a power of ten are in the range
                locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        line.set_major_locator(locator)
        line.set_minor_locator(NullLocator())
    elif axis["scale"] == "share" and finite and min(finite) >= 0 and max(finite) <= 1:
        if max(finite) <= 0.8:
            limits(0, max(1.05 * max(finite), 0.001))
        elif min(finite) < 0.5:
            limits(0, 1)
        else:
            limits(None, 1)
    if axis["scale"] != "log":
        whole = axis["scale"] == "linear" and all(value == int(value) for value in finite)
        line.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
    line.set_major_formatter(_formatter(axis, lowest))


def _formatter(axis: Spec, lowest: Number = 0.0) -> FuncFormatter:
    """Return the tick formatter of an axis.

    On a logarithmic axis with a zero, ticks between 0 and `lowest`, the smallest positive value,
    have no labels, since these would overlap.
    """
    if axis["scale"] == "share":
        return FuncFormatter(lambda value, _: f"{100 * value:.4g} %".replace("-", "−"))

    def tick_label(value: Number, _: object) -> str:
        if axis["scale"] == "log" and 0 < value < 0.5 * lowest:
            return ""
        if 1e-3 <= abs(value) < 1e4:  # neighbouring ticks may differ in the fourth digit
            return f"{value:.6g}".replace("-", "−")
        return values.number(float(f"{value:.6g}"))

    return FuncFormatter(tick_label)


@contextmanager
def _drawing(height: float) -> Iterator[Figure]:
    """Yield an empty drawing, with matplotlib's settings inside the block."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "plusx",
        "font.family": "sans-serif",
        "font.size": TEXT,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.axisbelow": True,
        "axes.titlesize": TEXT,
        "axes.titlecolor": MUTED,
        "axes.titlelocation": "left",
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "text.parse_math": False,  # names can contain dollar signs
    }
    with matplotlib.rc_context(cast(Any, settings)), warnings.catch_warnings():
        # the browser uses its own fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        plot = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(plot)
        yield plot


def _axes(plot: Figure) -> Axes:
    axes = plot.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)
    return axes


def _titles(axes: Axes, x: Spec, y: Spec) -> None:
    """Set the titles of the axes: y above the axis, x at its right end."""
    if x["title"]:
        axes.set_xlabel(_clean(x["title"]), loc="right")
    if y["title"]:
        axes.set_title(_clean(y["title"]), loc="left")


def _svg(plot: Figure, key: str) -> str:
    """Return the drawing as an HTML element with unique ids and the colours of the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    plot.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    head = r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>"
    svg = re.sub(head, r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r"\bid=\"|(?<=xlink:href=\")#|(?<=url\()#", lambda m: f"{m[0]}{key}-", svg)
    svg = svg.replace("xlink:href", "href")
    # two decimals are enough for paths
    svg = re.sub(
        r"(?<= d=\")[^\"]*(?=\")",
        lambda path: re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0]),
        svg,
    )
    svg = re.sub(r" ?font-family:[^;\"]*;?|'DejaVu Sans'[^;\"]*", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _clean(name: object) -> str:
    """Return a name as one line without control characters and repeated spaces."""
    chars = (" " if unicodedata.category(char)[0] in "CZ" else char for char in str(name))
    return " ".join("".join(chars).split()) or "(no name)"


def _short(name: object) -> str:
    """Shorten a name for a legend; matplotlib would hide labels that begin with an underscore."""
    short = textwrap.shorten(_clean(name), LONGEST_NAME, placeholder="…")
    return short.lstrip("_") or "…"


def _depth(name: str) -> tuple[float, ...]:
    return tuple(float(number) for number in _NUMBER.findall(name))


def _numbers(column: Sequence[Number | None]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in column], dtype=float)


def _unit(axis: Spec) -> str:
    return "%" if axis["scale"] == "share" else ""


def _cell(axis: Spec, value: Number | None) -> Cell:
    if value is None:
        return Cell(values.ABSENT, "")
    shown = f"{100 * value:.2f}" if axis["scale"] == "share" else values.number(value)
    return Cell(shown, value)
