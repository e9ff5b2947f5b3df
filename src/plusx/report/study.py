"""The page of a study: the finding, the figures, the tables, and what was run."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import charts, colours, names
from plusx.report.page import Table, result_table


LONGEST = 180  # characters of a finding that is set large; further sentences stand beneath


def study_page(result: Mapping[str, Any]) -> str:
    """The page of a study's result.json."""
    finding, more = _split(result["finding"])
    marked = result["marked"]
    return page.render(
        "study.html",
        {
            "result": result,
            "finding": finding,
            "more": more,
            "charts": charts(result["figures"]),
            "tables": _tables(result),
            "spread": any(
                isinstance(value, Mapping) and value.get("std") is not None
                for row in result["rows"]
                for value in row.values()
            ),
            "marked": marked
            and result_table(
                "Rows that are marked and in no mean", result["columns"], marked, before=("why",)
            ),
            "environment": page.environment_facts({**result["machine"], **result["versions"]}),
            "date": page.format_date(result["date"]),
            "duration": _duration(result["seconds"]) if result["seconds"] else "",
        },
    )


def _split(finding: str) -> tuple[str, str]:
    """The sentences that are set large, and those that do not fit beside them."""
    first, *rest = re.split(r"(?<=[.!?])\s+", finding)
    while rest and len(first) + len(rest[0]) < LONGEST:
        first = f"{first} {rest.pop(0)}"
    return first, " ".join(rest)


def _tables(result: Mapping[str, Any]) -> list[tuple[str, Table, str]]:
    """Title, table and note; marked in the colours of the figures where these have every row."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    if not rows:
        return []
    drawn = [name for figure in result["figures"] for name in names(figure)]
    palette = colours(drawn) if {row["name"] for row in rows} <= set(drawn) else {}
    one = {"title": "", "note": "", "columns": result["columns"], "rows": rows}
    tables = []
    for table in result.get("tables") or [one]:
        caption = f"Results: {table['title'] or result['title']}"
        cells = result_table(caption, table["columns"], table["rows"], colours=palette)
        tables.append((table["title"], cells, table["note"]))
    return tables


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
