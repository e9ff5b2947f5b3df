"""Three tables of networks side by side: quality, time to convergence, size against error.

They are made from runs, and printed only if nothing in them contradicts anything else: see
`plusx.study.consistency`.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, cast

from plusx import store
from plusx.data.source import Source
from plusx.grammar.spec import Net
from plusx.grammar.twins import with_merge
from plusx.recipe import Recipe
from plusx.recipe.studies import Tables as TablesOfRecipe
from plusx.report import values
from plusx.report.metrics import OF_CLASSES as SCORES
from plusx.study import drawn
from plusx.study.bands import listed
from plusx.study.consistency import check
from plusx.study.plan import Cell, Made, Study, by_name, with_net
from plusx.study.printed import QUANTITIES, TIMES, Average, Table, Tables, to_toml
from plusx.study.rows import row, spread
from plusx.zoo import Plain, find


TWIN = "plain "  # before the name of the network whose skips were taken away
TITLES = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1"}
FINE = 5_000  # images from which a share has two decimals


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, TablesOfRecipe)
    networks: dict[str, Net | str] = {}
    for name in said.networks:
        networks[name] = name
        net = find(name)
        if said.twins and isinstance(net, Net) and (twin := _twin(net)) is not None:
            networks[f"{TWIN}{name}"] = twin
    return [
        Cell(
            name=name,
            seed=seed,
            recipe=with_net(recipe, net, seed, source),
            factors={"threshold": said.threshold},
        )
        for name, net in networks.items()
        for seed in said.seeds
    ]


def columns(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        *({"key": key, "title": title, "unit": "%", "kind": "share"} for key, title in
          TITLES.items()),
        {"key": "epochs", "title": "Epochs", "unit": f"to {_threshold(recipe)}", "kind": "number"},
        {"key": "epoch_time", "title": "Time", "unit": "s an epoch", "kind": "number"},
        {"key": "total_time", "title": "Time", "unit": f"s to {_threshold(recipe)}",
         "kind": "number"},
        drawn.PARAMETERS,
        drawn.ERROR,
    ]  # fmt: skip


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    """A row a network. Epochs and times are over those seeds that reach the threshold.

    The time of an epoch is all that these seeds took for all their epochs, over these epochs, so
    that it makes the mean of their total times with the mean of their epochs.
    """
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        scores = row(name, runs, float(group[0].cell.factors["threshold"]))
        reached = [
            (epochs, run.seconds_per_epoch)
            for run, epochs in zip(runs, scores["epochs_to_threshold"]["seeds"], strict=True)
            if epochs is not None
        ]
        totals = [epochs * seconds for epochs, seconds in reached]
        each = [run.seconds_per_epoch for run in runs]
        pooled = sum(totals) / sum(epochs for epochs, _ in reached) if reached else mean(each)
        found.append(
            {
                "name": name,
                "seeds": scores["seeds"],
                **{key: scores[key] for key in SCORES},
                "epochs": scores["epochs_to_threshold"] if reached else None,
                "epoch_time": {**spread(each), "mean": pooled},
                "total_time": spread(totals) if reached else None,
                "parameters": scores["parameters"],
                "multiply_adds": scores["multiply_adds"],
                "error": spread([1 - run.scores["accuracy"] for run in runs]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    lowest, fewest = (
        min(measured(row) for row in rows)
        for measured in (lambda row: row["error"]["mean"], lambda row: row["parameters"])
    )
    best = [row["name"] for row in rows if row["error"]["mean"] == lowest]
    small = [row for row in rows if row["parameters"] == fewest]
    have = "has" if len(best) == 1 else "have"
    said = [f"{listed(best)} {have} the lowest error, {drawn.percent({'mean': lowest})}"]
    there = [row for row in rows if row["epochs"] and row["epochs"]["reached"] == len(row["seeds"])]
    if there:
        first = min(there, key=lambda row: row["total_time"]["mean"])
        said.append(f"{first['name']} is the first to reach the threshold")
    elif not any(row["epochs"] for row in rows):
        said.append("none reaches the threshold")
    errors = [f"{row['name']} ({drawn.percent(row['error'])})" for row in small]
    are = "is the smallest" if len(small) == 1 else "are the smallest"
    said.append(f"{listed(errors)} {are}, with {fewest:,} parameters")
    return "; ".join(said) + "."


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    plain = [name for name in groups if name.startswith("plain")]
    threshold = float(made[0].cell.factors["threshold"])
    sizes = [
        {"name": row["name"], "x": [row["parameters"]],
         "mean": [row["error"]["mean"]], "low": [min(row["error"]["seeds"])],
         "high": [max(row["error"]["seeds"])], "dashed": row["name"] in plain}
        for row in rows
    ]  # fmt: skip
    return [
        drawn.lines_figure(
            "Validation error",
            "At every evaluation; the dotted line is the threshold.",
            "Errors after training: "
            + "; ".join(f"{row['name']} {drawn.percent(row['error'])}" for row in rows)
            + ".",
            drawn.validation_lines(groups, plain),
            level=1 - threshold,
        ),
        drawn.lines_figure(
            "Error against parameters",
            "Validation error after training, mean over the seeds.",
            "; ".join(
                f"{row['name']} {row['parameters']:,} parameters, {drawn.percent(row['error'])}"
                for row in rows
            ),
            sizes,
            x={"title": "parameters", "scale": "log"},
            y={"title": "error", "scale": "share"},
        ),
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        "Runs that are made at a time share the machine: compare times within one study only.",
        "A plain network is the one that it is named after, without its skips.",
    ]


def tables(
    recipe: Recipe, made: Sequence[Made], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The three tables, with their units and decimals.

    RuntimeError: something in them cannot be true, named with its table, row and column.
    """
    some = next(each.run for each in made if each.run is not None)
    places = 2 if some.count >= FINE else 1
    several = len(rows[0]["seeds"]) > 1
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
    threshold, images = _threshold(recipe), f"{some.count:,} validation images of {some.data}"
    made_tables = [
        {
            "title": "Table 1: quality",
            "note": f"Of the {images}. Precision, recall and F1 are {some.averaging} averages over "
            "the classes.",
            "columns": [
                {"key": key, "title": title, "unit": "%", "kind": "share", "places": places}
                for key, title in TITLES.items()
            ],
            "rows": [_part(row, SCORES) for row in rows],
        },
        {
            "title": "Table 2: time to convergence",
            "note": f"Converged: the first epoch after which the accuracy on the {images} is at "
            f"least {threshold}. Means are over the seeds that come there. Time is that of "
            "training alone; an epoch's is the total of all seeds over their epochs.",
            "columns": [
                {"key": "epochs", "title": "Epochs", "unit": f"to {threshold}", "kind": "number",
                 "places": int(several), "absent": "not reached"},
                {"key": "epoch_time", "title": "Time", "unit": f"{epoch} an epoch",
                 "kind": "number", "places": _places(scaled, "epoch_time")},
                {"key": "total_time", "title": "Total time", "unit": total, "kind": "number",
                 "places": _places(scaled, "total_time")},
            ],
            "rows": scaled,
        },
        {
            "title": "Table 3: parameters against error",
            "note": f"Error: the share of wrong answers on the {images}.",
            "columns": [
                {**drawn.PARAMETERS, "places": 0},
                {**drawn.ERROR, "places": places},
            ],
            "rows": [_part(row, ("parameters", "error")) for row in rows],
        },
    ]  # fmt: skip
    complaints = check(as_printed(made_tables, made))
    if complaints:
        raise RuntimeError(
            f"the tables are not printed, for {len(complaints)} of their figures cannot be true: "
            + "; ".join(map(str, complaints))
        )
    return made_tables


def files(
    recipe: Recipe, made: Sequence[Made], rows: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The tables as Markdown, each as CSV, and all of them as `plusx check-tables` reads them."""
    several = tables(recipe, made, rows)
    return {
        "tables.md": "\n".join(markdown(each) for each in several),
        **{f"table{number}.csv": as_csv(each) for number, each in enumerate(several, 1)},
        "tables.toml": to_toml(as_printed(several, made)),
    }


def markdown(table: Mapping[str, Any]) -> str:
    """A table as Markdown, with its title and note."""
    heads = ["Network", *(", ".join(filter(None, values.heading(c))) for c in table["columns"])]
    texts = [[row["name"] for row in table["rows"]]]
    texts += [
        list(map(str, values.format_column(column, table["rows"]))) for column in table["columns"]
    ]
    rows = zip(*texts, strict=True)
    lines = [heads, ["---", *["---:"] * len(table["columns"])], *rows]
    drawn_rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"## {table['title']}", "", *drawn_rows, "", table["note"], ""])


def as_csv(table: Mapping[str, Any]) -> str:
    """A table as CSV: means and standard deviations in full, shares as fractions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [column["key"] for column in table["columns"]]
    units = {
        c["key"]: "" if c["kind"] == "share" else c["unit"].partition(" ")[0] for c in
        table["columns"] if c["key"] in ("epoch_time", "total_time")
    }  # fmt: skip
    heads = [f"{key}_{units[key]}" if units.get(key) else key for key in keys]
    writer.writerow(["network", *(head for key in heads for head in (key, f"{key}_std"))])
    for each in table["rows"]:
        writer.writerow([each["name"], *(part for key in keys for part in _parts(each[key]))])
    return buffer.getvalue()


def as_printed(several: Sequence[Mapping[str, Any]], made: Sequence[Made]) -> Tables:
    """The tables as they are printed, with what is known of their networks and images."""
    first = made[0]
    data = store.read_json(first.folder / "data.json")
    height, width = data["preprocessing"]["size"]
    names = list(by_name(made))
    return Tables(
        tables=tuple(
            Table(
                each["title"].partition(":")[0],
                {column["key"]: _plain_unit(column) for column in each["columns"]},
                _texts(each),
            )
            for each in several
        ),
        networks={name: said for name in names if (said := _said(name)) is not None},
        balanced=_balanced(made),
        averaging=cast(Average, first.run.averaging if first.run is not None else ""),
        classes=len(data["classes"]),
        channels=data["preprocessing"]["channels"],
        size=height if height == width else None,
    )


def _texts(table: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = {each["name"]: {} for each in table["rows"]}
    for column in table["columns"]:
        for each, said in zip(
            table["rows"], values.format_column(column, table["rows"]), strict=True
        ):
            if said.order is not None:
                texts[each["name"]][column["key"]] = said.text
    return texts


def _plain_unit(column: Mapping[str, Any]) -> str:
    """The unit as the checker knows it: "s an epoch" is s."""
    first = str(column["unit"]).partition(" ")[0]
    return first if first in QUANTITIES[column["key"]] else ""


def _said(name: str) -> str | None:
    """The network of a row in the checker's words; None where there is no arithmetic for it."""
    base = name.removeprefix(TWIN)
    if isinstance(find(base), Plain):
        return None
    return f"plain({base})" if name != base else base


def _balanced(made: Sequence[Made]) -> bool:
    """Whether the validation images are as many in every class."""
    for each in made:
        scores = store.read_json(each.folder / "result.json")["validation"]
        if len({own["count"] for own in scores["per_class"]}) > 1:
            return False
    return True


def _twin(net: Net) -> Net | None:
    """The network without its skips; None where it has none."""
    try:
        return with_merge(net, "none")
    except ValueError:
        return None


def _part(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: row[key] for key in ("name", *keys)}


def _parts(value: Any) -> tuple[Any, Any]:
    if isinstance(value, Mapping):
        return value["mean"], value["std"]
    return value, None


def _mean(row: Mapping[str, Any], key: str) -> float | None:
    return None if row[key] is None else float(row[key]["mean"])


def _unit(known: Sequence[float | None]) -> str:
    """The largest unit of which the longest time has at least five."""
    longest = max((value for value in known if value is not None), default=0.0)
    return next(unit for unit in ("h", "min", "s") if longest >= 5 * TIMES[unit] or unit == "s")


def _scaled(value: Mapping[str, Any] | None, unit: str) -> dict[str, Any] | None:
    if value is None:
        return None
    factor = float(TIMES[unit])
    std = None if value["std"] is None else value["std"] / factor
    seeds = [each / factor for each in value["seeds"]]
    return {"mean": value["mean"] / factor, "std": std, "seeds": seeds}


def _places(rows: Sequence[Mapping[str, Any]], key: str) -> int:
    """Decimals that give the shortest time two figures: one to four."""
    known = [mean for row in rows if (mean := _mean(row, key))]
    return min(4, max(1, 1 - math.floor(math.log10(min(known))))) if known else 1


def _threshold(recipe: Recipe) -> str:
    said = recipe.study
    assert isinstance(said, TablesOfRecipe)
    return f"{values.percent(said.threshold)} %"


TABLES = Study(
    title="Three tables",
    question="How good, how fast and how large are the networks, side by side?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
    tables=tables,
    files=files,
)
