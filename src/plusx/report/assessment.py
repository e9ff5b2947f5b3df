"""The HTML page of `plusx assess`: one table, reliability and corruptions."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.attack import eps_text
from plusx.report.charts import charts
from plusx.report.figures import dots_figure, line, lines_figure
from plusx.report.page import Cell, Column, Table
from plusx.statistics import wilson


def assessment_page(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a result.

    rows: title, unit, values and difference in that unit, each with value, low and high or None
    """
    runs = {"A": result, "B": result["other"]} if "other" in result else {"network": result}
    return page.render(
        "assessment.html",
        {
            "result": result,
            "finding": result["finding"],
            "more": "",
            "pictures": False,
            "eps": eps_text(result["eps"]),
            "runs": [(name, run["run"]) for name, run in runs.items()],
            "charts": charts([_reliability(runs), _corrupted(runs)]),
            "table": _table(runs, rows),
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _table(runs: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Measure", number=False), *(Column(name) for name in runs)]
    if len(runs) > 1:
        columns.append(Column("A - B"))
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


def _reliability(runs: Mapping[str, Any]) -> dict[str, Any]:
    lines = []
    for name, run in runs.items():
        bins = run["calibration"]["bins"]
        ends = [wilson(row["accuracy"], row["count"]) for row in bins]
        lines.append(
            line(
                name,
                [row["confidence"] for row in bins],
                [row["accuracy"] for row in bins],
                low=[end.low for end in ends],
                high=[end.high for end in ends],
            )
        )
    lines.append(line("calibrated", [0.0, 1.0], [0.0, 1.0], dashed=True))
    return lines_figure(
        "Accuracy by confidence",
        "Predictions in bins of equal width, of which those without predictions are left out; "
        "areas are intervals of 95 %. Below the dashed line, the network is too confident.",
        lines,
        x={"title": "confidence", "scale": "linear"},
        y={"title": "accuracy", "scale": "share"},
    )


def _corrupted(runs: Mapping[str, Any]) -> dict[str, Any]:
    spreads = {}
    for index, row in enumerate(next(iter(runs.values()))["corrupted"]["by_kind"]):
        for name, run in runs.items():
            measured = run["corrupted"]["by_kind"][index]
            label = row["corruption"].replace("-", " ")
            spreads[f"{label}, {name}" if len(runs) > 1 else label] = {
                "seeds": [measured["value"]],
                "mean": measured["value"],
                "interval": [measured["low"], measured["high"]],
            }
    return dots_figure(
        "Accuracy by corruption",
        "The mean over five severities, with intervals of 95 % over images.",
        {"title": "accuracy", "scale": "share"},
        spreads,
    )
