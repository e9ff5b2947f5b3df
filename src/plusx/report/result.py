"""The HTML page of a comparison, a study or a benchmark."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import charts, shared_colours
from plusx.report.page import Table, result_table


MAX_HEADLINE = 180  # characters; further sentences of the finding are below it
_NUMBERS = ("", "One seed", "Two seeds", "Three seeds", "Four seeds", "Five seeds")


def result_page(result: Mapping[str, Any]) -> str:
    """Return the page of a result.json.

    Required keys: kind, title, question, finding, columns, rows, figures, notes, machine, command
    and date. Optional keys: study, data, split, seeds, length, tables, marked, recipe, versions,
    seconds and jobs.
    """
    finding, more = _split(result["finding"])
    marked, data, split = (result.get(key) for key in ("marked", "data", "split"))
    command = " ".join(filter(None, ["plusx", result["kind"], result.get("study")]))
    kicker = [command, result["title"], data, split and f"{split} split"]
    seconds = result.get("seconds")
    return page.render(
        "result.html",
        {
            "result": result,
            "kicker": " · ".join(filter(None, kicker)),
            "context": f"{result['question']} {_seeds(result)}".strip(),
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
                "Runs excluded from the means", result["columns"], marked, before=("why",)
            ),
            "facts": [
                ("Command", result["command"]),
                ("Data", ", split ".join(filter(None, [data, split]))),
                ("Seeds", ", ".join(map(str, result.get("seeds", ())))),
                ("Finished", page.format_date(result["date"])),
                (
                    "Time",
                    f"{_duration(seconds)}, {result['jobs']} at a time"
                    if seconds and "jobs" in result
                    else "",
                ),
                *page.environment_facts({**result["machine"], **result.get("versions", {})}),
            ],
        },
    )


def _split(finding: str) -> tuple[str, str]:
    """Return the headline, and the sentences that do not fit into it."""
    first, *rest = re.split(r"(?<=[.!?])\s+", finding)
    while rest and len(first) + len(rest[0]) < MAX_HEADLINE:
        first = f"{first} {rest.pop(0)}"
    return first, " ".join(rest)


def _seeds(result: Mapping[str, Any]) -> str:
    """Return a sentence about the number of seeds and the length of training."""
    count = len(result.get("seeds", ()))
    if not count or not result["rows"]:
        return ""
    seeds = _NUMBERS[count] if count < len(_NUMBERS) else f"{count} seeds"
    length = f", trained for {result['length']}" if result.get("length") else ""
    unknown = ": the spread over seeds is unknown" if count == 1 else ""
    return f"{seeds} each{length}{unknown}."


def _tables(result: Mapping[str, Any]) -> list[tuple[str, Table, str]]:
    """Return (title, table, note) of each table, with the colours of the figures if they have all
    rows."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    if not rows:
        return []
    palette = shared_colours(result["figures"])
    if not {row["name"] for row in rows} <= set(palette):
        palette = {}
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
