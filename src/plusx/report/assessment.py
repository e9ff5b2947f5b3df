"""The HTML page of `plusx assess`: one table, reliability and corruptions."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import charts
from plusx.report.figures import line, lines_figure
from plusx.report.page import Cell, Column, Table


def assessment_page(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a result.

    rows: title, unit, values and difference in that unit, each with value, low and high or None
    """
    runs = [result, result["other"]] if "other" in result else [result]
    return page.render(
        "assessment.html",
        {
            "result": result,
            "finding": result["finding"],
            "more": "",
            "pictures": False,
            "charts": charts([_reliability(runs), _corrupted(runs)]),
            "table": _table(runs, rows),
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _table(runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Measure", number=False), *(Column(run["run"]) for run in runs)]
    if len(runs) > 1:
        columns.append(Column("Difference"))
    cells = []
    for row in rows:
        values = [*row["values"], *([row["difference"]] if len(runs) > 1 else [])]
        title = f"{row['title']}, {row['unit']}"
        cells.append([Cell(title), *(_cell(value) for value in values)])
    return Table("Measures, with intervals of 95 %", columns, cells)


def _cell(value: Mapping[str, float] | None) -> Cell:
    if value is None:
        return Cell("not measured")
    note = f"{value['low']:.3g} to {value['high']:.3g}" if "low" in value else ""
    return Cell(f"{value['value']:.3g}", value["value"], note=note)


def _reliability(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lines = []
    for run in runs:
        bins = run["calibration"]["bins"]
        confidences = [row["confidence"] for row in bins]
        lines.append(line(run["run"], confidences, [row["accuracy"] for row in bins]))
    lines.append(line("calibrated", [0.0, 1.0], [0.0, 1.0], dashed=True))
    return lines_figure(
        "Accuracy by confidence",
        "Predictions in bins of equal width, of which those without predictions are left out. "
        "Below the dashed line, the network is too confident.",
        lines,
        x={"title": "confidence", "scale": "linear"},
        y={"title": "accuracy", "scale": "share"},
    )


def _corrupted(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = [row["corruption"] for row in runs[0]["corrupted"]["by_kind"]]
    lines = [
        line(
            run["run"],
            list(range(1, len(kinds) + 1)),
            [row["value"] for row in run["corrupted"]["by_kind"]],
            low=[row["low"] for row in run["corrupted"]["by_kind"]],
            high=[row["high"] for row in run["corrupted"]["by_kind"]],
        )
        for run in runs
    ]
    names = ", ".join(f"{number} {kind}" for number, kind in enumerate(kinds, 1))
    return lines_figure(
        "Accuracy by corruption",
        f"The mean over five severities: {names.replace('-', ' ')}.",
        lines,
        x={"title": "corruption", "scale": "linear"},
        y={"title": "accuracy", "scale": "share"},
    )
