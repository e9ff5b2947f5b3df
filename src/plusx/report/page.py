"""The parts of a page: elements of HTML as text, everything that comes from outside escaped.

A page is one file. It asks for nothing over a network, and its policy forbids it: no image, font,
style sheet or script but what stands in it. The one script sorts tables; without it nothing else
changes.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from plusx.report.colours import SHADES


MOST_NARROW = 5  # columns of numbers that fit on a telephone as they are
MOST_CARDS = 6  # rows that can be compared as cards; more are scrolled sideways, their names kept
MOST_KEPT = 18  # signs of a row's name that are not broken on a telephone
MOST_UNBROKEN = 36  # signs of a cell that are not broken anywhere
LONG = 160  # signs of a finding that is set smaller
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it is sorted by if that is something else."""

    text: str
    value: int | float | str | None = None
    colour: int | None = None  # a mark in one of the page's colours before the text
    note: str = ""  # said smaller, after the text


@dataclass(frozen=True)
class Column:
    title: str
    unit: str = ""
    number: bool = True


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str,
    cards: bool = True,
) -> str:
    """A table. The first cell of a row is its heading.

    On a telephone the rows of a wide table become cards; where they are many, or `cards` is not
    wanted, it is scrolled sideways under the names of its rows, which stay.
    """
    sortable = len(rows) > 2
    # A text needs the room of two numbers.
    wide = len(columns) + sum(not column.number for column in columns[1:])
    narrow = " narrow" if wide <= MOST_NARROW else " cards"
    if narrow == " cards" and (not cards or len(rows) > MOST_CARDS):
        narrow = " long"
    head = "".join(
        f'<th scope="col"{_class(column)}>'
        + (f'<button type="button">{_titled(column)}</button>' if sortable else _titled(column))
        + "</th>"
        for column in columns
    )
    body = "".join(
        "<tr>"
        + "".join(
            _cell(column, cell, index == 0)
            for index, (column, cell) in enumerate(zip(columns, row, strict=True))
        )
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="table" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table class="data{narrow}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def figure(
    drawing: str,
    *,
    title: str,
    caption: str,
    alternative: str,
    legend: Sequence[tuple[str, int, bool]] = (),
    numbers: str = "",
    tall: bool = False,
) -> str:
    """A drawing with its title and caption, and a text that says what it shows.

    `legend` has (name, colour, dashed) for what is not named in the drawing; `numbers` is a table
    of what is drawn. One that is `tall` stands beside two others.
    """
    kind = ' class="tall"' if tall else ""
    keys = "".join(
        f'<li><i class="line{" dashed" if dashed else ""}" style="--colour:var(--c{colour})"></i>'
        f"{escape(name)}</li>"
        for name, colour, dashed in legend
    )
    return (
        f"<figure{kind}><h3>{escape(title)}</h3>"
        f'<div class="drawing" role="img" aria-label="{escape(alternative)}">{drawing}</div>'
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + f"<figcaption>{said(caption)}</figcaption>"
        + (folded("The numbers", numbers) if numbers else "")
        + "</figure>\n"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and what they are."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>\n" for k, v in pairs if v)
    return f"<dl>\n{rows}</dl>\n"


def folded(title: str, inside: str) -> str:
    """Something that is there but need not be seen at once."""
    return f"<details><summary>{escape(title)}</summary>\n{inside}</details>\n"


def section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{inside}</section>\n"


def said(text: str) -> str:
    """A text of sentences: escaped, and no number is parted from its per cent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>\n"


def note(text: str) -> str:
    return f'<p class="note">{said(text)}</p>\n'


def source(text: str) -> str:
    """A text as it stands in a file."""
    return f'<pre tabindex="0">{escape(text)}</pre>\n'


def document(
    *,
    title: str,
    kicker: str,
    finding: str,
    context: str,
    body: str,
    colours: Sequence[tuple[str, str]],
    more: str = "",
    pictures: bool = False,
) -> str:
    """The whole page. `finding` is the sentence that it is about, `more` what else was found;
    `colours` are (light, dark). `pictures` says that images stand in it, as data: URIs."""
    long = ' class="long"' if len(finding) > LONG else ""
    beneath = f'<p class="more">{said(more)}</p>\n' if more else ""
    style = _read("style.css") + _colour_variables(colours)
    script = _read("sort.js")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{_digest(script)}'" + ("; img-src data:" if pictures else "")
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<p class="kicker">{escape(kicker)}</p>
<h1{long}>{said(finding)}</h1>
{beneath}<p class="context">{said(context)}</p>
</header>
{body}</main>
<script>{script}</script>
</body>
</html>
"""


def _cell(column: Column, cell: Cell, heading: bool) -> str:
    mark = (
        ""
        if cell.colour is None
        else f'<i class="mark" style="background:var(--c{cell.colour})"></i>'
    )
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
    aside = f' <span class="spread">{escape(cell.note)}</span>' if cell.note else ""
    inside = f"{mark}{escape(cell.text)}{aside}"
    if heading:
        wide = ' class="wide"' if len(cell.text) > MOST_KEPT else ""
        return f'<th scope="row"{wide}{value}>{inside}</th>'
    words = column.unit.partition(" ")[0] in ("a", "an", "to", "of", "per", "from", "in")
    label = f"{column.title}{' ' if words else ', '}{column.unit}".removesuffix(", ").strip()
    kinds = ["number"] * column.number + ["wide"] * (len(cell.text) > MOST_UNBROKEN)
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<td{kind} data-label="{escape(label)}"{value}><span>{inside}</span></td>'


def _titled(column: Column) -> str:
    unit = f" <small>{escape(column.unit)}</small>" if column.unit else ""
    return escape(column.title) + unit


def _class(column: Column) -> str:
    return ' class="number"' if column.number else ""


def _colour_variables(colours: Sequence[tuple[str, str]]) -> str:
    pairs = [(f"c{index}", pair) for index, pair in enumerate(colours)]
    pairs += [(f"s{index}", pair) for index, pair in enumerate(SHADES)]
    light = "".join(f"--{name}:{pair[0]};" for name, pair in pairs)
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in pairs)
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
