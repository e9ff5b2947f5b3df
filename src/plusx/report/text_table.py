"""Tables as text for a terminal; wide tables are transposed or split."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plusx.report import values


MIN_WIDTH = 40  # of wrapped notes
MAX_CELL = 28  # characters of a text in a table that is too wide


@dataclass(frozen=True)
class _Column:
    """A column: title and unit, texts, and whether they are left-aligned."""

    head: tuple[str, str]
    texts: list[str]
    left: bool = False


def rows_table(
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    width: int | None = None,
) -> str:
    """Return the rows of a result as a table of at most `width` characters (None: no limit).

    Columns and values are those of result.json (docs/studies.md). A column without any value is
    left out, unless it has a text for that ("absent"). A wide table is transposed, or split.
    """
    shown = [
        column
        for column in columns
        if "absent" in column or any(row.get(column["key"]) is not None for row in rows)
    ]
    table = [_Column(("name", ""), [str(row["name"]) for row in rows], left=True)]
    for column in shown:
        texts = [str(formatted) for formatted in values.format_column(column, rows)]
        table.append(_Column(values.heading(column), texts, left=column["kind"] == "text"))
    return "\n".join(_fitted(table, width))


def study_tables(result: Mapping[str, Any], width: int | None = None) -> str:
    """Return the tables of a comparison or a study as text."""
    texts = []
    for table in result["tables"] or [{**result, "title": "", "note": ""}]:
        lines = [table["title"], rows_table(table["columns"], table["rows"], width)]
        wide = max(width or 10**6, MIN_WIDTH)
        lines += textwrap.wrap(table["note"], wide)
        texts.append("\n".join(filter(None, lines)))
    return "\n\n".join(texts)


def _fitted(columns: Sequence[_Column], width: int | None) -> list[str]:
    """Return the lines of a table, transposed or split if it is too wide."""
    lines = _lines(columns)
    if width is None or _widest(lines) <= width:
        return lines
    lines = _lines(_transposed(columns))
    if _widest(lines) <= width:
        return lines
    short = [
        replace(column, texts=[_cut(text) for text in column.texts]) if column.left else column
        for column in columns
    ]
    name, *others = short
    tables: list[list[_Column]] = [[name]]
    for column in others:  # a single column may be too wide
        if len(tables[-1]) > 1 and _widest(_lines([*tables[-1], column])) > width:
            tables.append([name])
        tables[-1].append(column)
    return [line for table in tables for line in ("", *_lines(table))][1:]


def _transposed(columns: Sequence[_Column]) -> list[_Column]:
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
    """Return the lines of a table; the line of units is left out if there are none."""
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
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"
