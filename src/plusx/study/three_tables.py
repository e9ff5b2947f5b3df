"""Three tables of networks side by side: quality, time to convergence, parameters against error.

They are computed from runs, and written only if `plusx.study.consistency` finds no contradiction.
"""

import contextlib
import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, cast

from plusx import store
from plusx.data.dataset import Dataset
from plusx.grammar.spec import Net
from plusx.grammar.twins import with_merge
from plusx.recipe import Recipe
from plusx.recipe.studies import Tables as TablesOfRecipe
from plusx.report import values
from plusx.report.figures import band, lines_figure
from plusx.report.metrics import OF_CLASSES
from plusx.statistics import spread
from plusx.study.consistency import check
from plusx.study.experiment import (
    ERROR,
    PARAMETERS,
    Experiment,
    Group,
    Row,
    column,
    listed,
    lowest,
    percent,
    with_net,
)
from plusx.study.figures import validation_lines
from plusx.study.printed import QUANTITIES, TIMES, Average, Table, Tables, to_toml
from plusx.study.results import summarise
from plusx.study.trial import Trial
from plusx.zoo import External, find


TWIN = "plain "  # prefix of a network without its skips
TITLES = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1"}
FINE = 5_000  # number of images from which percentages have two decimals


def _trials(recipe: Recipe, table: TablesOfRecipe, source: Dataset) -> list[Trial]:
    networks: dict[str, Net | str] = {}
    for name in table.networks:
        networks[name] = name
        net = find(name)
        if table.twins and isinstance(net, Net):
            with contextlib.suppress(ValueError):  # it has no skips
                networks[f"{TWIN}{name}"] = with_merge(net, "none")
    return [
        Trial(
            name=name, recipe=with_net(recipe, net, source), factors={"threshold": table.threshold}
        )
        for name, net in networks.items()
    ]


def _row(group: Group) -> dict[str, Any]:
    """Epochs and times are over the seeds that reach the threshold. The time per epoch is the total
    time of these seeds over their epochs, so that the mean time per epoch times the mean number of
    epochs is the mean total time."""
    summary = summarise(group.name, group.runs, float(group.factors["threshold"]))
    reached = [
        (epochs, run.seconds_per_epoch)
        for run, epochs in zip(group.runs, summary["epochs_to_threshold"]["seeds"], strict=True)
        if epochs is not None
    ]
    totals = [epochs * seconds for epochs, seconds in reached]
    epoch_seconds = [run.seconds_per_epoch for run in group.runs]
    pooled = sum(totals) / sum(epochs for epochs, _ in reached) if reached else mean(epoch_seconds)
    return {
        **{key: summary[key] for key in OF_CLASSES},
        "epochs": summary["epochs_to_threshold"] if reached else None,
        "epoch_time": {**spread(epoch_seconds), "mean": pooled},
        "total_time": spread(totals) if reached else None,
        **group.costs,
        "error": group.errors["error"],
    }


def finding(rows: Sequence[Row]) -> str:
    """Name the networks of the lowest error, the shortest time to the threshold and the fewest
    parameters, with those that are not known to differ."""
    best, similar = lowest(rows, "error")
    clauses = [f"{best['name']} has the lowest error, {percent(best['error'])}{similar}"]
    reached = [
        row for row in rows if row["epochs"] and row["epochs"]["reached"] == len(row["seeds"])
    ]
    if reached:
        fastest, similar = lowest(reached, "total_time")
        clauses.append(f"{fastest['name']} is the first to reach the threshold{similar}")
    elif not any(row["epochs"] for row in rows):
        clauses.append("none reaches the threshold")
    fewest = min(row["parameters"] for row in rows)
    smallest = [row for row in rows if row["parameters"] == fewest]
    errors = [f"{row['name']} ({percent(row['error'])})" for row in smallest]
    are = "is the smallest" if len(smallest) == 1 else "are the smallest"
    clauses.append(f"{listed(errors)} {are}, with {fewest:,} parameters")
    return "; ".join(clauses) + "."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    plain = [group.name for group in groups if group.name.startswith("plain")]
    sizes = [
        band(
            row["name"],
            [row["parameters"]],
            [[error] for error in row["error"]["seeds"]],
            dashed=row["name"] in plain,
        )
        for row in rows
    ]
    return [
        lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            validation_lines(groups, plain),
            level=1 - float(groups[0].factors["threshold"]),
        ),
        lines_figure(
            "Error against parameters",
            "Validation error after training, mean over the seeds.",
            sizes,
            x={"title": "parameters", "scale": "log"},
            y={"title": "error", "scale": "share"},
        ),
    ]


def tables(
    table: TablesOfRecipe, groups: Sequence[Group], rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """Return the three tables, with units and decimals. Raises RuntimeError if values contradict
    each other, with table, row and column."""
    first_run = groups[0].runs[0]
    decimals = 2 if first_run.count >= FINE else 1
    seeds = len(rows[0]["seeds"])
    epoch, total = (
        _unit([_mean(row, key) for row in rows]) for key in ("epoch_time", "total_time")
    )
    scaled = [
        {
            "name": row["name"],
            "epochs": row["epochs"],
            "epoch_time": _scaled(row["epoch_time"], epoch),
            "total_time": _scaled(row["total_time"], total),
        }
        for row in rows
    ]
    threshold, images = (
        _threshold(table),
        f"{first_run.count:,} validation images of {first_run.data}",
    )
    three_tables = [
        {
            "title": "Table 1: quality",
            "note": f"On the {images}. Precision, recall and F1 are {first_run.averaging} averages "
            "over the classes.",
            "columns": [
                {"key": key, "title": title, "unit": "%", "kind": "share", "places": decimals}
                for key, title in TITLES.items()
            ],
            "rows": rows,
        },
        {
            "title": "Table 2: time to convergence",
            "note": f"Converged: the first epoch after which the accuracy on the {images} is at "
            f"least {threshold}. Means are over the seeds that reach it. Time is that of "
            "training alone; an epoch's is the total of all seeds over their epochs.",
            "columns": [
                {"key": "epochs", "title": "Epochs", "unit": f"to {threshold}", "kind": "number",
                 "places": int(seeds > 1), "absent": "not reached"},
                {"key": "epoch_time", "title": "Time", "unit": f"{epoch} an epoch",
                 "kind": "number", "places": _decimals(scaled, "epoch_time")},
                {"key": "total_time", "title": "Total time", "unit": total, "kind": "number",
                 "places": _decimals(scaled, "total_time")},
            ],
            "rows": scaled,
        },
        {
            "title": "Table 3: parameters against error",
            "note": f"Error: the fraction of wrong predictions on the {images}.",
            "columns": [
                {**PARAMETERS, "places": 0},
                {**ERROR, "places": decimals},
            ],
            "rows": rows,
        },
    ]  # fmt: skip
    complaints = check(as_printed(three_tables, groups))
    if complaints:
        raise RuntimeError(
            f"the tables are not written: {len(complaints)} values contradict each other: "
            + "; ".join(map(str, complaints))
        )
    return three_tables


def files(tables: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> dict[str, str]:
    """Return the tables as Markdown, each as CSV, and all of them in the format of `plusx
    check-tables`."""
    return {
        "tables.md": "\n".join(markdown(table) for table in tables),
        **{f"table{number}.csv": as_csv(table) for number, table in enumerate(tables, 1)},
        "tables.toml": to_toml(as_printed(tables, groups)),
    }


def markdown(table: Mapping[str, Any]) -> str:
    """Return a table as Markdown, with title and note."""
    headings = ["Network", *(", ".join(filter(None, values.heading(c))) for c in table["columns"])]
    texts = [[row["name"] for row in table["rows"]]]
    texts += [
        list(map(str, values.format_column(column, table["rows"]))) for column in table["columns"]
    ]
    rows = zip(*texts, strict=True)
    lines = [headings, ["---", *["---:"] * len(table["columns"])], *rows]
    table_lines = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"## {table['title']}", "", *table_lines, "", table["note"], ""])


def as_csv(table: Mapping[str, Any]) -> str:
    """Return a table as CSV: means and standard deviations unrounded, percentages as fractions."""
    headings = ["network"]
    for shown in table["columns"]:
        unit = "" if shown["kind"] == "share" else _plain_unit(shown)
        heading = f"{shown['key']}_{unit}" if unit else shown["key"]
        headings += [heading, f"{shown['key']}_std"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(headings)
    for row in table["rows"]:
        cells = [row["name"]]
        for shown in table["columns"]:
            value = row[shown["key"]]
            has_spread = isinstance(value, Mapping)
            cells += [value["mean"], value["std"]] if has_spread else [value, None]
        writer.writerow(cells)
    return buffer.getvalue()


def as_printed(tables: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Tables:
    """Return the printed tables, with facts about their networks and images."""
    data = store.read_json(groups[0].results[0].folder / "data.json")
    height, width = data["preprocessing"]["size"]
    return Tables(
        tables=tuple(
            Table(
                table["title"].partition(":")[0],
                {column["key"]: _plain_unit(column) for column in table["columns"]},
                _texts(table),
            )
            for table in tables
        ),
        networks={
            group.name: network
            for group in groups
            if (network := _checked_name(group.name)) is not None
        },
        balanced=_balanced(groups),
        averaging=cast(Average, groups[0].runs[0].averaging),
        classes=len(data["classes"]),
        channels=data["preprocessing"]["channels"],
        size=height if height == width else None,
    )


def _texts(table: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = {row["name"]: {} for row in table["rows"]}
    for shown in table["columns"]:
        column_texts = values.format_column(shown, table["rows"])
        for row, value in zip(table["rows"], column_texts, strict=True):
            if value.order is not None:
                texts[row["name"]][shown["key"]] = value.text
    return texts


def _plain_unit(column: Mapping[str, Any]) -> str:
    """Return the unit without what it relates to: "s an epoch" is s."""
    first = str(column["unit"]).partition(" ")[0]
    return first if first in QUANTITIES[column["key"]] else ""


def _checked_name(name: str) -> str | None:
    """Return the network of a row as the checker names it; None if it has no spec."""
    base = name.removeprefix(TWIN)
    if isinstance(find(base), External):
        return None
    return f"plain({base})" if name != base else base


def _balanced(groups: Sequence[Group]) -> bool:
    """Whether all classes have the same number of validation images."""
    for result in (result for group in groups for result in group.results):
        metrics = store.read_json(result.folder / "result.json")["validation"]
        if len({row["count"] for row in metrics["per_class"]}) > 1:
            return False
    return True


def _mean(row: Mapping[str, Any], key: str) -> float | None:
    return None if row[key] is None else float(row[key]["mean"])


def _unit(values: Sequence[float | None]) -> str:
    """Return the largest unit in which the longest time is at least five."""
    longest = max((value for value in values if value is not None), default=0.0)
    return next(unit for unit in ("h", "min", "s") if longest >= 5 * TIMES[unit] or unit == "s")


def _scaled(value: Mapping[str, Any] | None, unit: str) -> dict[str, Any] | None:
    if value is None:
        return None
    factor = float(TIMES[unit])
    std = None if value["std"] is None else value["std"] / factor
    seeds = [seed / factor for seed in value["seeds"]]
    return {"mean": value["mean"] / factor, "std": std, "seeds": seeds}


def _decimals(rows: Sequence[Row], key: str) -> int:
    """Return the decimals that give the shortest time two significant digits: one to four."""
    times = [mean for row in rows if (mean := _mean(row, key))]
    return min(4, max(1, 1 - math.floor(math.log10(min(times))))) if times else 1


def _threshold(table: TablesOfRecipe) -> str:
    return f"{values.percent(table.threshold)} %"


TABLES = Experiment[TablesOfRecipe](
    title="Three tables",
    question="How good, how fast and how large are the networks, side by side?",
    trials=_trials,
    columns=lambda table, groups: [
        *(column(key, title, "%", "share") for key, title in TITLES.items()),
        column("epochs", "Epochs", f"to {_threshold(table)}"),
        column("epoch_time", "Time", "s an epoch"),
        column("total_time", "Time", f"s to {_threshold(table)}"),
        PARAMETERS,
        ERROR,
    ],
    row=_row,
    finding=finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "Runs in parallel share the machine: compare times within one study only.\n"
        "A plain network is the residual network of the same name without its skips."
    ),
    tables=tables,
    files=files,
)
