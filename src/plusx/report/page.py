"""HTML pages from jinja2 templates, and the tables on them.

A page is one self-contained file: its content security policy forbids every request. The only
script sorts tables. jinja2 escapes every value.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from plusx.report import values


MAX_NARROW = 5  # columns of numbers that fit the width of a phone
MAX_CARDS = 6  # rows that a phone shows as cards; longer tables scroll sideways
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `value`: the sort key, if it is not the text."""

    text: str
    value: int | float | str | None = None
    colour: str = ""  # of a mark before the text
    note: str = ""  # smaller, after the text


@dataclass(frozen=True)
class Column:
    title: str
    unit: str = ""
    number: bool = True

    @property
    def label(self) -> str:
        """The title with its unit, for rows shown as cards."""
        words = self.unit.partition(" ")[0] in ("a", "an", "to", "of", "per", "from", "in")
        return f"{self.title}{' ' if words else ', '}{self.unit}".removesuffix(", ").strip()


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    cards: bool = True

    @property
    def layout(self) -> str:
        """The layout on a phone: "narrow" (as it is), "cards", or "long" (scrolls sideways)."""
        # a text takes the width of two numbers
        wide = len(self.columns) + sum(not column.number for column in self.columns[1:])
        if wide <= MAX_NARROW:
            return "narrow"
        return "cards" if self.cards and len(self.rows) <= MAX_CARDS else "long"


def result_table(
    caption: str,
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str = "Name",
    colours: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Table:
    """Return a table of the rows of a result, with the name of each first.

    columns: key, title, unit and kind; one without any value is left out, unless it has a text for
        missing values ("absent")
    before: keys of texts shown right after the name
    """
    heads = [
        Column(name, number=False),
        *(Column(key.capitalize(), number=False) for key in before),
    ]
    cells = [
        [
            Cell(str(row["name"]), str(row["name"]), colour=(colours or {}).get(row["name"], "")),
            *(Cell(str(row[key])) for key in before),
        ]
        for row in rows
    ]
    for column in columns:
        if "absent" not in column and all(row.get(column["key"]) is None for row in rows):
            continue
        heads.append(Column(*values.heading(column), number=column["kind"] != "text"))
        for row_cells, value in zip(cells, values.format_column(column, rows), strict=True):
            row_cells.append(
                Cell(value.text, "" if value.order is None else value.order, note=value.note)
            )
    return Table(caption, heads, cells)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render templates/`template` with these values."""
    return _environment().get_template(template).render(context)


def environment_facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, text) of the machine, system, versions and threads; "" where unknown."""
    cores = environment.get("cores")
    machine = [
        environment.get("processor"),
        cores and f"{cores} {'core' if cores == 1 else 'cores'}",
        environment.get("instructions"),
    ]
    if environment.get("device", "cpu") != "cpu":
        machine.insert(0, environment.get("device_name"))
    packages = ("plusx", "python", "torch", "torchvision", "numpy")
    versions = [f"{name} {environment[name]}" for name in packages if environment.get(name)]
    return [
        ("Machine", ", ".join(str(part) for part in machine if part)),
        ("System", str(environment.get("platform") or "")),
        ("Versions", ", ".join(versions)),
        ("Threads", str(environment.get("threads", ""))),
    ]


def format_date(date: str) -> str:
    """Return an ISO 8601 date as text, to the minute."""
    when = datetime.fromisoformat(date)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("plusx.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    script = (_HERE / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_digest": Markup(digest),
    }
    environment.filters["sentences"] = sentences
    return environment


def sentences(text: str) -> Markup:
    """Return escaped text with a no-break space before each per cent sign."""
    return Markup(str(escape(text)).replace(" %", "&nbsp;%"))
