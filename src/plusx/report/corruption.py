"""The HTML page of an evaluation on corrupted inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plusx.report import page
from plusx.report.charts import charts
from plusx.report.figures import line, lines_figure
from plusx.report.page import Cell, Column, Table


@dataclass(frozen=True)
class Shown:
    """The first input with a corruption, or without ("", 0), as a PNG."""

    corruption: str
    severity: int
    image: bytes


def corruption_page(result: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    """Return the page of a result of `plusx corrupt`."""
    return page.render(
        "corruption.html",
        {
            "result": result,
            "finding": result["finding"],
            "more": _more(result),
            "baseline": result.get("baseline", {}).get("run"),
            "pictures": bool(shown),
            "charts": charts([_figure(result)]) if len(result["severities"]) > 1 else [],
            "values": _values(result),
            "shown": [(example, page.data_uri(example.image)) for example in shown],
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _more(result: Mapping[str, Any]) -> str:
    parts = []
    for name, label in (("mean_error", "Mean error"), ("mce", "mCE")):
        if result.get(name):
            value, low, high = (100 * result[name][key] for key in ("value", "low", "high"))
            parts.append(f"{label} {value:.1f} % ({low:.1f} to {high:.1f}).")
    return " ".join(parts)


def _figure(result: Mapping[str, Any]) -> dict[str, Any]:
    metric = result["metric"].replace("_", " ")
    lines = []
    groups = dict.fromkeys(row["group"] for row in result["rows"])
    for group in groups:
        means = []
        for severity in result["severities"]:
            values = [
                row["value"]
                for row in result["rows"]
                if (row["group"], row["severity"]) == (group, severity)
            ]
            means.append(None if None in values else sum(values) / len(values))
        lines.append(line(group, result["severities"], means))
    return lines_figure(
        f"{metric.capitalize()} by group of corruptions",
        f"{result['count']:,} {result['noun']}s of {result['data']} {result['split']}; a line is "
        "the mean over the kinds of a group.",
        lines,
        x={"title": "severity", "scale": "linear"},
        y={"title": metric, "scale": "share"},
    )


def _values(result: Mapping[str, Any]) -> Table:
    columns = [
        Column("Corruption", number=False),
        Column("Group", number=False),
        *(Column(f"Severity {severity}", "%") for severity in result["severities"]),
    ]
    summary = {row["corruption"]: row for row in result.get("by_kind", [])}
    if summary:
        columns.append(Column("Mean", "%"))
    values = {(row["corruption"], row["severity"]): row["value"] for row in result["rows"]}
    groups = {row["corruption"]: row["group"] for row in result["rows"]}
    rows = []
    for kind, group in groups.items():
        row = [Cell(kind.replace("-", " ")), Cell(group)]
        row += [_cell(values[kind, severity]) for severity in result["severities"]]
        if summary:
            low, high = (100 * summary[kind][end] for end in ("low", "high"))
            row.append(_cell(summary[kind]["value"], f"{low:.1f} to {high:.1f}"))
        rows.append(row)
    return Table(f"{result['metric'].replace('_', ' ').capitalize()}, corrupted", columns, rows)


def _cell(value: float | None, note: str = "") -> Cell:
    return Cell("undefined" if value is None else f"{100 * value:.1f}", value or 0, note=note)
