"""What a measured study came to, as Markdown: its table, its finding and where it ran."""

from collections.abc import Mapping
from typing import Any


def study(found: Mapping[str, Any]) -> str:
    """The table of a study, with its finding beneath."""
    columns = found["columns"]
    head = ["", *(f"{column['title']} {column['unit']}".strip() for column in columns)]
    align = ["---", *("---" if column["kind"] == "text" else "---:" for column in columns)]
    lines = [_row(head), f"|{'|'.join(align)}|"]
    lines += [
        _row([f"`{row['name']}`", *(_cell(row.get(c["key"]), c["kind"]) for c in columns)])
        for row in found["rows"]
    ]
    machine = found["machine"]
    seeds = f"{len(found['seeds'])} {'seed' if len(found['seeds']) == 1 else 'seeds'}"
    where = (
        f"{found['data']}, {seeds}, {found['length']}; {machine['processor']}, torch "
        f"{found['versions']['torch']}, {found['date'][:10]}; `{found['command']}`."
    )
    return "\n".join([*lines, "", found["finding"], "", where])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""
    if kind == "text":
        text = str(value).replace("|", "\\|")  # else it would end the cell
        return f"`{text}`" if any(mark in text for mark in "+&~|*") else text
    if isinstance(value, Mapping):
        middle, spread = _number(value["mean"], kind), value["std"]
        return middle if spread is None else f"{middle} ± {_number(spread, kind)}"
    return _number(value, kind)


def _number(value: float, kind: str) -> str:
    if kind == "count":
        return f"{value:,}"
    if kind == "share":
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
