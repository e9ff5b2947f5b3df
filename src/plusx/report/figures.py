"""The figures of a report: SVG to stand inside a page, drawn by matplotlib, coloured by the page.

Text stays text, and every colour is a variable of the page's style sheet, so that one figure is
right in light and in dark. A figure is 400 units wide: readable on a telephone, not too large
beside another one.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator


WIDTH, HEIGHT = 400.0, 264.0  # units of the drawing; the page scales them
TEXT = 11.5
Scale = Literal["share", "log"]
GAP = 14.0  # between the feet of two labels
MOST_LABELS = 8  # lines that can be labelled at their ends
# matplotlib wants colours. These are never seen: each becomes a variable of the style sheet.
INK, MUTED, RULE = "#a1c301", "#a1c302", "#a1c303"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"}


@dataclass(frozen=True)
class Line:
    """One network over the epochs: the mean over its seeds, between the lowest and the highest."""

    name: str
    colour: int  # which of the page's colours, from 0
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """One network's seeds, their mean and the interval that is claimed for it, if one is."""

    name: str
    colour: int
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def curves(lines: Sequence[Line], *, key: str, scale: Scale, level: float | None = None) -> str:
    """Lines over epochs. `share`: from 0 to 100 %; `log`: a loss. `level` is drawn as a threshold.

    `key` makes the names inside the SVG unique on the page.
    """
    shown = [line for line in lines if line.x]
    labelled = len(shown) <= MOST_LABELS
    right = 12.0 + (max((len(line.name) for line in shown), default=0) * 6.4 if labelled else 0)
    with _drawing(right) as (figure, axes):
        for line in shown:
            colour = _colour(line.colour)
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                line.x,
                line.mean,
                color=colour,
                linewidth=1.9,
                solid_capstyle="round",
                dashes=(4, 1.6) if line.dashed else (None, None),
            )
            if len(line.x) == 1:
                axes.plot(line.x, line.mean, "o", color=colour, markersize=5)
        last = max((line.x[-1] for line in shown), default=1)
        first = min((line.x[0] for line in shown), default=0)
        axes.set_xlim(min(first, last - 1), last)
        if scale == "share":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        else:
            axes.set_yscale("log")
            _decades(axes, [v for line in shown for v in (*line.low, *line.high) if v > 0])
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, dashes=(1.5, 2.5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch", color=MUTED)
        if labelled:
            _label_ends(axes, shown)
        return _svg(figure, key)


def dots(groups: Sequence[Dots], *, key: str, limits: tuple[float, float] = (0, 1)) -> str:
    """Every seed as a dot, a row a network, over the interval that the statements rest on."""
    left = 18.0 + max(len(group.name) for group in groups) * 6.6
    height = max(HEIGHT, 60.0 + 22 * len(groups))
    with _drawing(16.0, left=left, height=height) as (figure, axes):
        for row, group in enumerate(groups):
            colour = _colour(group.colour)
            if group.interval is not None:
                axes.plot(
                    group.interval,
                    (row, row),
                    color=colour,
                    linewidth=9,
                    alpha=0.22,
                    solid_capstyle="butt",
                )
            axes.plot(
                group.values,
                [row] * len(group.values),
                "o",
                color=colour,
                markersize=5.5,
                alpha=0.75,
                markeredgewidth=0,
            )
            axes.plot((group.mean, group.mean), (row - 0.28, row + 0.28), color=colour, linewidth=2)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_yticks(range(len(groups)), [group.name for group in groups], color=INK)
        span = limits[1] - limits[0]
        axes.set_xlim(limits[0] - 0.02 * span, limits[1] + 0.02 * span)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        axes.grid(False, axis="y")
        axes.grid(True, axis="x", color=RULE, linewidth=0.8)
        axes.spines["left"].set_visible(False)
        return _svg(figure, key)


@contextmanager
def _drawing(
    right: float, left: float = 46.0, height: float = HEIGHT
) -> Iterator[tuple[Figure, Axes]]:
    """Axes with margins in units, and matplotlib's settings for as long as they are drawn."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "plusx",
        "font.family": "sans-serif",
        "font.size": TEXT,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.axisbelow": True,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "text.parse_math": False,  # a dollar in a name is a dollar
    }
    with matplotlib.rc_context(cast(Any, settings)):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        box = (left / WIDTH, 44 / height, (WIDTH - left - right) / WIDTH, (height - 58) / height)
        axes = figure.add_axes(box)
        axes.set_facecolor("none")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=6)
        axes.grid(True, axis="y", color=RULE, linewidth=0.8)
        yield figure, axes


def _colour(index: int) -> str:
    assert 0 <= index < 256
    return f"#a1b2{index:02x}"


def _decades(axes: Axes, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, no more than six, written as plain numbers."""
    low, high = min(values, default=0.1), max(values, default=1.0)
    axes.set_ylim(low / 1.15, high * 1.15)
    ticks = [
        round(factor * 10**power, 12)
        for power in range(-12, 13)
        for factor in (1, 2, 5)
        if low / 1.15 <= factor * 10**power <= high * 1.15
    ]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """The name of each line at its right end, moved apart where they would touch."""
    figure = axes.figure
    ends = [axes.transData.transform((line.x[-1], line.mean[-1])) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: ends[index][1])
    bottom, top = (float(axes.transAxes.transform((0, y))[1]) for y in (0, 1))
    feet = _apart([float(ends[index][1]) for index in order], GAP, bottom, top)
    width, height = figure.bbox.width, figure.bbox.height
    for index, foot in zip(order, feet, strict=True):
        figure.text(
            (ends[index][0] + 6) / width,
            foot / height,
            lines[index].name,
            color=_colour(lines[index].colour),
            va="center",
            fontweight="bold",
        )


def _apart(wanted: Sequence[float], gap: float, bottom: float, top: float) -> list[float]:
    """Ascending places at least `gap` apart, near those wanted (ascending) and in the range."""
    placed: list[float] = []
    for place in wanted:
        placed.append(max(place, placed[-1] + gap) if placed else max(place, bottom))
    over = top
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], over)
        over = placed[index] - gap
    return placed


def _svg(figure: Figure, key: str) -> str:
    """The drawing as an element of a page: no prologue, no metadata, its own names, our colours."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>",
        r'<svg viewBox="\1" aria-hidden="true">',
        text,
        count=1,
    )
    text = re.sub(r"\bid=\"|(?<=xlink:href=\")#|(?<=url\()#", lambda m: f"{m[0]}{key}-", text)
    text = text.replace("xlink:href", "href")
    return re.sub(r'style="[^"]*"', lambda found: _style(found[0]), text)


def _style(text: str) -> str:
    """A style of matplotlib's with the page's colours and the page's font."""
    text = re.sub(r" ?font-family:[^;\"]*;?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"#a1b2([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", text)
