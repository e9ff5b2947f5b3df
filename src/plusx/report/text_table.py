"""Tables as text: what was made in rows, or in columns where that fits a terminal better."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plusx.report import values


NARROWEST = 40  # what notes are wrapped to on a terminal that is narrower
LONGEST = 28  # signs of a line of text in a cell, where the table does not fit otherwise


@dataclass(frozen=True)
class _Column:
    """One column: its title and unit, its texts, and whether they are set to the left."""

    head: tuple[str, str]
    texts: list[str]
    left: bool = False


def rows_table(
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    width: int | None = None,
) -> str:
    """The rows of a study's result for a terminal `width` characters wide (None: any).

    Columns and values are those of result.json, see docs/studies.md; a column without any value
    is left out, unless it has a word for that. What does not fit is turned, or parted into tables
    under one another.
    """
    shown = [
        column
        for column in columns
        if "absent" in column or any(row.get(column["key"]) is not None for row in rows)
    ]
    drawn = [_Column(("name", ""), [str(row["name"]) for row in rows], left=True)]
    for column in shown:
        texts = [str(formatted) for formatted in values.format_column(column, rows)]
        drawn.append(_Column(values.heading(column), texts, left=column["kind"] == "text"))
    return "\n".join(_fitted(drawn, width))


def study_tables(result: Mapping[str, Any], width: int | None = None) -> str:
    """The table of a comparison or a study, or those in its place, for a terminal."""
    parts = []
    for table in result["tables"] or [{**result, "title": "", "note": ""}]:
        lines = [table["title"], rows_table(table["columns"], table["rows"], width)]
        wide = max(width or 10**6, NARROWEST)
        lines += textwrap.wrap(table["note"], wide)
        parts.append("\n".join(filter(None, lines)))
    return "\n\n".join(parts)


def _fitted(columns: Sequence[_Column], width: int | None) -> list[str]:
    """Columns side by side; where they are too wide, turned, and else in parts."""
    lines = _lines(columns)
    if width is None or _widest(lines) <= width:
        return lines
    drawn = _lines(_turned(columns))
    if _widest(drawn) <= width:
        return drawn
    short = [
        replace(column, texts=[_cut(text) for text in column.texts]) if column.left else column
        for column in columns
    ]
    name, *others = short
    parts: list[list[_Column]] = [[name]]
    for column in others:
        # A column alone may be too wide; it is shown all the same.
        if len(parts[-1]) > 1 and _widest(_lines([*parts[-1], column])) > width:
            parts.append([name])
        parts[-1].append(column)
    return [line for part in parts for line in ("", *_lines(part))][1:]


def _turned(columns: Sequence[_Column]) -> list[_Column]:
    """The names as heads, and the heads as the first column."""
    name, *others = columns
    first = _Column(
        name.head, [" ".join(filter(None, column.head)) for column in others], left=True
    )
    return [
        first,
        *(
            _Column((head, ""), [column.texts[index] for column in others])
            for index, head in enumerate(name.texts)
        ),
    ]


def _lines(columns: Sequence[_Column]) -> list[str]:
    """The heads over a rule, and the rows; a line of units only where there are some."""
    widths = [max(map(len, (*column.head, *column.texts))) for column in columns]
    heads = [[column.head[row] for column in columns] for row in (0, 1)]
    rows = zip(*(column.texts for column in columns), strict=True)
    lines = [
        "  ".join(
            text.ljust(width) if column.left else text.rjust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in (*heads, *rows)
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [*lines[: 2 if lines[1] else 1], rule, *lines[2:]]


def _widest(lines: Sequence[str]) -> int:
    return max(map(len, lines))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
