"""The HTML pages of a search (`plusx tune`) and of its rate finder."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from plusx.report import page, values
from plusx.report.charts import charts
from plusx.report.figures import (
    Figure,
    bars_figure,
    dots_figure,
    line,
    lines_figure,
    points_figure,
)
from plusx.report.metrics import METRICS, PERCENT, better, capital
from plusx.report.page import Cell, Column, Table
from plusx.report.text_table import rows_table


MIN_TRIALS = 10  # finished trials for importances
_MAX_KEYS = 8  # whose slices are drawn
_MAX_ROWS = 5  # of the text, besides the default


def tune_page(result: Mapping[str, Any], recipe: str) -> str:
    """Return the page of a result of `plusx tune`; `recipe` is the text of best.toml."""
    finding, _, more = result["finding"].partition(". ")
    failed = [row for row in result["trials"] if row["state"] in ("failed", "diverged")]
    finished = sum(row["state"] == "complete" for row in result["trials"])
    return page.render(
        "tune.html",
        {
            "result": result,
            "finding": finding + ("." if more else ""),
            "more": more,
            "finished": finished,
            "min_trials": MIN_TRIALS,
            "failed": len(failed),
            "title": METRICS[result["metric"]].title,
            "charts": charts([_history(result), *_importance(result), *_slices(result)]),
            "trials": _trials(result),
            "confirmed": _confirmed(result["confirmation"], result["metric"]),
            "recipe_text": recipe,
            "environment": page.environment_facts({**result["machine"], **result["versions"]}),
            "date": page.format_date(result["date"]),
        },
    )


def tune_text(result: Mapping[str, Any], width: int | None = None) -> str:
    """Return the best trials and the default as a table of text."""
    key = result["metric"]
    rows = sorted(_complete(result), key=lambda row: -better(key, row["value"]))
    shown = rows[:_MAX_ROWS]
    shown += [row for row in rows[_MAX_ROWS:] if row["number"] == 0]
    metric = METRICS[key]
    columns = [
        {"key": "value", "title": capital(metric.title), "unit": metric.unit, "kind": metric.kind},
        *(
            {"key": name, "title": name, "kind": "text" if "choices" in entry else "number"}
            for name, entry in result["space"].items()
        ),
    ]
    texts = [
        {"name": f"trial {row['number']}{_role(row, result)}", "value": row["value"],
         **{name: _shown(value) for name, value in row["fields"].items()}}
        for row in shown
    ]  # fmt: skip
    return rows_table(columns, texts, width)


def rate_page(result: Mapping[str, Any]) -> str:
    """Return the page of the result of a rate finder."""
    finding, _, more = result["finding"].partition(". ")
    return page.render(
        "rate.html",
        {
            "result": result,
            "finding": finding + ("." if more else ""),
            "more": more,
            "charts": charts([_rate_figure(result)]),
            "environment": page.environment_facts({**result["machine"], **result["versions"]}),
            "date": page.format_date(result["date"]),
        },
    )


def _complete(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in result["trials"] if row["value"] is not None]


def _axis(result: Mapping[str, Any]) -> dict[str, str]:
    metric = METRICS[result["metric"]]
    return {"title": f"validation {metric.title}", "scale": metric.axis["scale"]}


def _history(result: Mapping[str, Any]) -> Figure:
    rows, metric = _complete(result), result["metric"]
    best: list[float] = []
    for row in rows:
        is_better = not best or better(metric, row["value"]) > better(metric, best[-1])
        best.append(row["value"] if is_better else best[-1])
    numbers = [row["number"] for row in rows]
    return points_figure(
        "History",
        "Every finished trial, and the best so far. Trial 0 is the recipe as it is.",
        {"title": "trial", "scale": "linear"},
        _axis(result),
        {"trial": (numbers, [row["value"] for row in rows])},
        [line("best so far", numbers, best)],
    )


def _importance(result: Mapping[str, Any]) -> list[Figure]:
    importance = result["importance"]
    if not importance:
        return []
    names = sorted(importance, key=lambda key: -importance[key])
    return [
        bars_figure(
            "Importance",
            "Fraction of the variance of the value that a key explains (fANOVA).",
            {"title": "", "scale": "share"},
            names,
            {"importance": [importance[name] for name in names]},
        )
    ]


def _slices(result: Mapping[str, Any]) -> list[Figure]:
    """Return a figure for each key, the most important first: the results of the trials by its
    value."""
    importance = result["importance"]
    keys = sorted(result["space"], key=lambda key: -importance.get(key, 0.0))
    return [_slice(result, key, result["space"][key]) for key in keys[:_MAX_KEYS]]


def _slice(result: Mapping[str, Any], key: str, entry: Mapping[str, Any]) -> Figure:
    rows, axis = _complete(result), _axis(result)
    if "choices" in entry:
        groups = {
            str(_shown(choice)): [row["value"] for row in rows if row["fields"][key] == choice]
            for choice in entry["choices"]
        }
        spreads = {
            name: {"seeds": seeds, "mean": mean(seeds)} for name, seeds in groups.items() if seeds
        }
        return dots_figure(key, "Dot: a trial; line: their mean.", axis, spreads)
    best = result["best"]["trial"]
    points = {
        name: (
            [row["fields"][key] for row in rows if (row["number"] == best) is is_best],
            [row["value"] for row in rows if (row["number"] == best) is is_best],
        )
        for name, is_best in (("trial", False), ("best", True))
    }
    scale = "log" if entry["log"] else "linear"
    caption = "Every finished trial."
    return points_figure(key, caption, {"title": key, "scale": scale}, axis, points)


def _trials(result: Mapping[str, Any]) -> Table:
    metric, keys = METRICS[result["metric"]], list(result["space"])
    columns = [
        Column("Trial"),
        Column(capital(metric.title), metric.unit),
        *(Column(key, number="choices" not in result["space"][key]) for key in keys),
        Column("Epochs"),
        Column("Seconds"),
        Column("State", number=False),
    ]
    rows = []
    for row in result["trials"]:
        value = row["value"]
        rows.append(
            [
                Cell(f"{row['number']}{_role(row, result)}", row["number"]),
                Cell(
                    values.ABSENT if value is None else metric.shown(value, decimals=2),
                    "" if value is None else value,
                ),
                *(_field(row["fields"].get(key)) for key in keys),
                Cell(f"{row['epochs']:,}", row["epochs"]),
                Cell(f"{row['seconds']:,.1f}", row["seconds"]),
                Cell(row["state"] if row["state"] == "complete" else row["reason"]),
            ]
        )
    return Table("Trials", columns, rows, cards=False)


def _role(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return " (default)" and " (best)" for the trials that are."""
    default = " (default)" if row["number"] == 0 else ""
    return default + (" (best)" if row["number"] == result["best"]["trial"] else "")


def _field(value: Any) -> Cell:
    is_number = type(value) in (int, float)
    return Cell(f"{value:.4g}" if is_number else _shown(value), value if is_number else None)


def _shown(value: Any) -> Any:
    """Return a value of a key for a table: an empty text is named."""
    return value if type(value) in (int, float) else str(value) or "(empty)"


def _confirmed(confirmation: Mapping[str, Any] | None, key: str) -> Table | None:
    if confirmation is None or confirmation["failed"]:
        return None
    metric = METRICS[key]
    unit = "points" if metric.unit == PERCENT else metric.unit
    gap = confirmation["difference"]
    ends = [gap[end] for end in ("low", "high")]
    note = (
        "the same with every seed"
        if None in ends
        else " to ".join(metric.shown(end, sign="+", decimals=2) for end in ends)
    )
    rows = [
        [
            Cell(who),
            Cell(
                metric.shown(confirmation[who]["mean"], decimals=2),
                confirmation[who]["mean"],
                note=", ".join(
                    metric.shown(value, decimals=2) for value in confirmation[who]["seeds"]
                ),
            ),
        ]
        for who in ("best", "default")
    ]
    shown = metric.shown(gap["difference"], sign="+", decimals=2)
    rows.append([Cell("difference"), Cell(f"{shown} {unit}", gap["difference"], note=note)])
    columns = [Column("Recipe", number=False), Column(capital(metric.title), metric.unit)]
    return Table("Confirmation with other seeds", columns, rows)


def _rate_figure(result: Mapping[str, Any]) -> Figure:
    lines: Sequence[Mapping[str, Any]] = [
        line("loss", result["rates"], result["losses"]),
        line("smoothed", result["rates"], result["smoothed"]),
    ]
    suggested = [
        (rate, loss)
        for rate, loss in zip(result["rates"], result["smoothed"], strict=True)
        if rate == result["suggested"]
    ]
    x = {"title": "learning rate", "scale": "log"}
    y = {"title": "training loss", "scale": "linear"}
    caption = (
        "The rate rises by a constant factor in every step. Smoothed: exponential mean of the "
        "losses. Dot: the suggested rate."
    )
    if not suggested:
        return lines_figure("Loss over the learning rate", caption, lines, x=x, y=y)
    points = {"suggested": tuple(zip(*suggested, strict=True))}
    return points_figure("Loss over the learning rate", caption, x, y, points, lines)  # type: ignore[arg-type]
