"""The page of a comparison: the finding, the figures, the table, and what was run."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page, values
from plusx.report.charts import charts, colours, family
from plusx.report.metrics import OF_CLASSES, capital, metric
from plusx.report.page import Cell, Column, Table


def comparison_page(result: Mapping[str, Any]) -> str:
    """The page of a comparison's result.json."""
    first, *_ = metrics = list(result.get("metrics", OF_CLASSES))
    shares = [*metrics, *(["train_error"] if "train_error" in result["rows"][0] else [])]
    return page.render(
        "comparison.html",
        {
            "result": result,
            "finding": result["finding"],
            "metric": metric(first),
            "names": ", ".join(row["name"] for row in result["rows"]),
            "seeds": len(result["rows"][0]["seeds"]),
            "charts": charts([*_curves(result, first), _seeds(result, first)]),
            "table": _table(result, shares),
            "train_error": "train_error" in shares,
            "marked": _marked(result.get("marked") or ()),
            "environment": page.environment_facts({**result["machine"], **result["versions"]}),
            "date": page.format_date(result["date"]),
        },
    )


def _curves(result: Mapping[str, Any], first: str) -> list[dict[str, Any]]:
    """Lines over the epochs, of what is known of them."""
    several = len(result["rows"][0]["seeds"]) > 1
    band = " Line: mean over the seeds; band: lowest to highest." if several else ""
    threshold = result["threshold"]
    dotted = f" Dotted: the threshold of {values.percent(threshold)} %."
    drawn: list[tuple[str, str, str, float | None, str]] = [
        (first, f"Validation {metric(first).title}", "share", threshold,
         f"At every evaluation.{band}{dotted}"),
        ("train_error", "Training error", "share", None,
         f"Share of wrong predictions, measured while the epoch trains.{band}"),
        ("train_loss", "Training loss", "log", None, f"Logarithmic scale.{band}"),
    ]  # fmt: skip
    return [
        {
            "kind": "lines",
            "title": title,
            "caption": caption,
            "x": {"title": "epoch", "scale": "linear"},
            "y": {"title": "", "scale": scale},
            "lines": lines,
            "level": level,
        }
        for key, title, scale, level, caption in drawn
        if (lines := [line for curve in result["curves"] if (line := _line(curve, key))])
    ]


def _line(curve: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The line of a curve over the epochs for which the value is known."""
    known = [index for index, value in enumerate(curve[key]["mean"]) if value is not None]
    if not known:
        return None
    return {
        "name": curve["name"],
        "x": [curve["epochs"][index] for index in known],
        **{part: [curve[key][part][index] for index in known] for part in ("mean", "low", "high")},
        "dashed": family(curve["name"]) == "plain",
    }


def _seeds(result: Mapping[str, Any], first: str) -> dict[str, Any]:
    rows = result["rows"]
    of = "seeds and images" if metric(first).of_images else "seeds"
    bars = f" Bar: 95 % interval over {of}." if any(row["interval"] for row in rows) else ""
    return {
        "kind": "dots",
        "title": f"{result['split'].capitalize()} {metric(first).title} at the end, every seed",
        "caption": f"Dot: one seed; line: their mean.{bars}",
        "x": {"title": metric(first).title, "scale": "share"},
        "groups": [
            {
                "name": row["name"],
                "values": row[first]["seeds"],
                "mean": row[first]["mean"],
                "interval": row["interval"],
            }
            for row in rows
        ],
    }


def _table(result: Mapping[str, Any], shares: Sequence[str]) -> Table:
    rows = result["rows"]
    palette = colours([row["name"] for row in rows])
    columns = [
        Column("Network", number=False), Column("Parameters"), Column("MACs"),
        *(Column(capital(metric(key).title), "%") for key in shares),
        Column("Seconds", "an epoch"),
        Column("Epochs", f"to {values.percent(result['threshold'])} %"),
    ]  # fmt: skip
    cells = [
        [
            Cell(row["name"], row["name"], colour=palette[row["name"]]),
            Cell(f"{row['parameters']:,}", row["parameters"]),
            Cell(f"{row['multiply_adds']:,}", row["multiply_adds"]),
            *(_spread(row[key]) for key in shares),
            Cell(f"{row['seconds_per_epoch']['mean']:.2f}", row["seconds_per_epoch"]["mean"]),
            _epochs(row["epochs_to_threshold"]),
        ]
        for row in rows
    ]
    return Table("Results of every network", columns, cells)


def _marked(marked: Sequence[Mapping[str, Any]]) -> Table | None:
    """Runs that are in no mean, and why."""
    if not marked:
        return None
    columns = [Column("Network", number=False), Column("Seed"), Column("Why", number=False)]
    cells = [
        [Cell(row["name"], row["name"]), Cell(str(row["seed"]), row["seed"]), Cell(row["why"])]
        for row in marked
    ]
    return Table("Runs that are marked and in no mean", columns, cells)


def _spread(value: Mapping[str, Any]) -> Cell:
    note = "" if value["std"] is None else f"± {100 * value['std']:.1f}"
    return Cell(f"{100 * value['mean']:.1f}", value["mean"], note=note)


def _epochs(value: Mapping[str, Any]) -> Cell:
    seeds, reached = len(value["seeds"]), value["reached"]
    if not reached:
        return Cell("not reached", "inf")
    note = "" if reached == seeds else f"in {reached} of {seeds}"
    return Cell(f"{value['mean']:.1f}".removesuffix(".0"), value["mean"], note=note)
