"""The Markdown of a measured study: table, finding, machine and command."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import values


def study(result: Mapping[str, Any]) -> str:
    """The table of a study, followed by its finding."""
    columns, rows = result["columns"], result["rows"]
    head = ["", *(" ".join(filter(None, values.heading(column))) for column in columns)]
    align = ["---", *("---" if column["kind"] == "text" else "---:" for column in columns)]
    texts = [
        [_cell(str(value), column) for value in values.format_column(column, rows)]
        for column in columns
    ]
    lines = [_row(head), f"|{'|'.join(align)}|"]
    lines += [
        _row([f"`{row['name']}`", *cells])
        for row, cells in zip(rows, zip(*texts, strict=True), strict=True)
    ]
    machine = result["machine"]
    seeds = f"{len(result['seeds'])} {'seed' if len(result['seeds']) == 1 else 'seeds'}"
    where = (
        f"{result['data']}, {seeds}, {result['length']}; {machine['processor']}, torch "
        f"{result['versions']['torch']}, {result['date'][:10]}; `{result['command']}`."
    )
    return "\n".join([*lines, "", result["finding"], "", where])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str, column: Mapping[str, Any]) -> str:
    text = text.replace("|", "\\|")  # else it would end the cell
    sentence = column["kind"] == "text" and any(mark in text for mark in "+&~|*")
    return f"`{text}`" if sentence else text
