"""What a measured study came to, as Markdown: its table, its finding and where it ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import values


def study(found: Mapping[str, Any]) -> str:
    """The table of a study, with its finding beneath."""
    columns, rows = found["columns"], found["rows"]
    head = ["", *(" ".join(filter(None, values.heading(column))) for column in columns)]
    align = ["---", *("---" if column["kind"] == "text" else "---:" for column in columns)]
    told = [
        [_cell(str(value), column) for value in values.format_column(column, rows)]
        for column in columns
    ]
    lines = [_row(head), f"|{'|'.join(align)}|"]
    lines += [
        _row([f"`{row['name']}`", *cells])
        for row, cells in zip(rows, zip(*told, strict=True), strict=True)
    ]
    machine = found["machine"]
    seeds = f"{len(found['seeds'])} {'seed' if len(found['seeds']) == 1 else 'seeds'}"
    where = (
        f"{found['data']}, {seeds}, {found['length']}; {machine['processor']}, torch "
        f"{found['versions']['torch']}, {found['date'][:10]}; `{found['command']}`."
    )
    return "\n".join([*lines, "", found["finding"], "", where])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str, column: Mapping[str, Any]) -> str:
    text = text.replace("|", "\\|")  # else it would end the cell
    sentence = column["kind"] == "text" and any(mark in text for mark in "+&~|*")
    return f"`{text}`" if sentence else text
