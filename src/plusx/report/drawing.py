"""Drawings to stand inside a page: SVG made by matplotlib, coloured by the page's style sheet.

Text stays text, and every colour is a variable of the style sheet, so that one drawing is right in
light and in dark. A drawing is 400 units wide: readable on a telephone, not too large beside
another one. Everything is placed in units; what stands along an axis is said by its scale.
"""

import io
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from plusx.report.scales import Scale


WIDTH, HEIGHT = 400.0, 264.0  # units of the drawing; the page scales them
TEXT = 11.5
LINE = 14.0  # from one line of text to the next
# matplotlib wants colours. These are never seen: each becomes a variable of the style sheet.
INK, MUTED, RULE, PAPER = "#a1c301", "#a1c302", "#a1c303", "#a1c304"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
}
SHADES = 12  # that a surface is drawn with
_NARROW = frozenset("fijlrtI|!.,:;'`()[]{} ·-")
_WIDE = frozenset("mwMWGOQ@%&—…×")


@contextmanager
def drawing(height: float = HEIGHT) -> Iterator[Figure]:
    """An empty drawing, and matplotlib's settings for as long as it is drawn."""
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
    with matplotlib.rc_context(cast(Any, settings)), warnings.catch_warnings():
        # The browser has its own fonts: what matplotlib's lack does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        yield figure


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at this place of the drawing, in units from its lower left corner."""
    whole = figure.bbox.height
    box = (left / WIDTH, bottom / whole, width / WIDTH, height / whole)
    axes = figure.add_axes(box)
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=6)
    return axes


def along(axes: Axes, side: str, scale: Scale, *, grid: bool = True) -> None:
    """Give the axes' x or y the scale: its range, its ticks, and rules at them."""
    places = [place for place, _ in scale.ticks]
    texts = [text for _, text in scale.ticks]
    if side == "x":
        axes.set_xlim(scale.low, scale.high)
        axes.set_xticks(places, texts)
    else:
        axes.set_ylim(scale.low, scale.high)
        axes.set_yticks(places, texts)
    if grid:
        axes.grid(True, axis=cast(Any, side), color=RULE, linewidth=0.8)


def write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    colour: str = MUTED,
    align: str = "left",
    bold: bool = False,
) -> None:
    """A line of text whose middle is at height `y`, in units."""
    figure.text(
        x / WIDTH,
        y / figure.bbox.height,
        text,
        color=colour,
        ha=cast(Any, align),
        va="center_baseline",
        fontweight="bold" if bold else "normal",
    )


def series(index: int) -> str:
    """What stands for the page's colour of this number until the drawing is written."""
    assert 0 <= index < 1 << 16
    return f"#b{index:04x}7"


def shade(index: int) -> str:
    """What stands for the page's shade of this number, from 0 (the lowest)."""
    assert 0 <= index < SHADES
    return f"#a1d4{index:02x}"


def clean(text: str) -> str:
    """A name as one line that can be drawn: no control characters, no runs of spaces."""
    kept = (" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    return " ".join("".join(kept).split()) or "(no name)"


def heading(title: str) -> str:
    """The title of an axis as one line; nothing where there is none."""
    return clean(title) if title else ""


def extent(text: str, *, bold: bool = False) -> float:
    """About how wide a text is, rather too much than too little: fonts differ."""
    width = 0.0
    for sign in text:
        if unicodedata.east_asian_width(sign) in "WF":
            width += 1.0
        elif sign in _NARROW:
            width += 0.37
        elif sign in _WIDE:
            width += 0.9
        else:
            width += 0.7 if sign.isupper() else 0.61
    return TEXT * width * (1.1 if bold else 1.0)


def wrapped(text: str, width: float, *, most: int = 3, bold: bool = False) -> list[str]:
    """A text in lines of at most `width` units; what does not go into `most` lines is cut."""
    one = extent(text, bold=bold)
    signs = max(4, int(width / one * len(text))) if one > width else len(text)
    lines = textwrap.wrap(text, signs) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: max(1, signs - 1)] + "…"]
    return lines


def apart(
    wanted: Sequence[float], sizes: Sequence[float], bottom: float, top: float
) -> list[float]:
    """Places for things of these sizes, each in its middle: ascending as wanted, in the range, not
    over one another (unless all of them do not fit), and otherwise as near as can be to what is
    wanted, by the sum of squares: things that touch move together, about their middle."""
    shifts: list[float] = []
    edge = 0.0
    for size in sizes:
        shifts.append(edge + size / 2)
        edge += size
    groups: list[tuple[float, int]] = []  # (place of the group's foot, how many are in it)
    for place, shift in zip(wanted, shifts, strict=True):
        foot, count = place - shift, 1
        while groups and groups[-1][0] >= foot:
            below, several = groups.pop()
            foot = (below * several + foot * count) / (several + count)
            count += several
        groups.append((foot, count))
    highest = max(bottom, top - edge)
    feet = [min(max(foot, bottom), highest) for foot, count in groups for _ in range(count)]
    return [foot + shift for foot, shift in zip(feet, shifts, strict=True)]


def svg(figure: Figure, key: str) -> str:
    """The drawing as an element of a page: no prologue, no metadata, its own names, our colours.

    `key` makes the names inside it unique on the page.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(
        r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>",
        r'<svg viewBox="\1" aria-hidden="true">',
        text,
        count=1,
    )
    text = re.sub(r"\bid=\"|(?<=xlink:href=\")#|(?<=url\()#", lambda m: f"{m[0]}{key}-", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'(?<= d=")[^"]*(?=")', lambda found: _shorter(found[0]), text)
    return re.sub(r'style="[^"]*"', lambda found: _style(found[0]), text)


def _shorter(path: str) -> str:
    """A path with two decimals: more cannot be seen."""
    path = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", path)
    return " ".join(path.split())


def _style(text: str) -> str:
    """A style of matplotlib's with the page's colours and the page's font."""
    text = re.sub(r" ?font-family:[^;\"]*;?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"#a1d4([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", text)
    return re.sub(r"#b([0-9a-f]{4})7", lambda found: f"var(--c{int(found[1], 16)})", text)
