"""The page of `plusx bench`: what networks cost on one machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import alternative, charts, colours
from plusx.report.page import result_table


Row = Mapping[str, Any]
Number = int | float


def bench_page(result: Mapping[str, Any]) -> str:
    """The page of a bench.json."""
    rows: Sequence[Row] = result["rows"]
    return page.render(
        "bench.html",
        {
            "result": result,
            "finding": result["finding"],
            "charts": charts(result["figures"]),
            "table": result_table(
                "Networks on this machine",
                columns(rows, result["batch"]),
                [flat(row) for row in rows],
                name="Network",
                colours=colours([row["name"] for row in rows]),
            ),
            "sources": sources(rows),
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def columns(rows: Sequence[Row], batch: int) -> list[dict[str, str]]:
    """The columns of the table: keys of `flat` rows."""
    known = (
        ("parameters", "Parameters", "", "count"),
        ("multiply_adds", "MACs", "", "count"),
        ("published", "Accuracy", "published", "share"),
        ("measured", "Accuracy", "measured", "share"),
        ("latency", "One image", "ms", "number"),
        ("latency_interval", ends(rows).capitalize(), "ms", "text"),
        ("images_per_second", "Images", "a second", "number"),
        ("step", "Training step", "ms", "number"),
        ("saved", "Saved for backward", f"MB, {batch} images", "number"),
    )
    return [{"key": key, "title": title, "unit": unit, "kind": kind}
            for key, title, unit, kind in known]  # fmt: skip


def flat(row: Row) -> dict[str, Any]:
    """A row with one plain value a column."""
    published, measured = row["published"] or {}, row["measured"] or {}
    latency = row["latency_seconds"]
    return {
        "name": row["name"],
        "parameters": row["parameters"],
        "multiply_adds": row["multiply_adds"],
        "published": published.get("accuracy"),
        "measured": measured.get("accuracy"),
        "latency": 1e3 * latency["median"],
        "latency_interval": f"{1e3 * latency['low']:.3g} to {1e3 * latency['high']:.3g}",
        "images_per_second": row["images_per_second"]["median"],
        "step": 1e3 * row["step_seconds"]["median"],
        "saved": row["saved_bytes"] / 1e6,
    }


def ends(rows: Sequence[Row]) -> str:
    """What the ends of the times are: an interval needs six rounds."""
    whole = all(row["latency_seconds"].get("interval", True) for row in rows)
    return "95 % interval" if whole else "lowest to highest"


def sources(rows: Sequence[Row]) -> list[str]:
    """Whose the accuracies of the table are, a line for each source."""
    lines: dict[str, list[str]] = {}
    for key in ("published", "measured"):
        for row in rows:
            if row[key]:
                source = f"{key}: {row[key]['data']}, {row[key]['source']}"
                lines.setdefault(source, []).append(row["name"])
    return [f"Accuracy {source} ({', '.join(names)})." for source, names in lines.items()]


def figures(rows: Sequence[Row], batch: int) -> list[dict[str, Any]]:
    """Time over work, memory over work, accuracy over time."""
    work = {"title": "multiply-adds (MACs) of one image", "scale": "log"}
    latency = {"title": "ms for one image", "scale": "log"}
    drawn = [
        _figure(
            "Time for one image",
            f"The median of the rounds, with its {ends(rows)}.",
            work,
            latency,
            [(row["name"], row["multiply_adds"], *_milliseconds(row)) for row in rows],
        ),
        _figure(
            "Memory of training",
            f"What the forward pass saves for the backward pass, of a batch of {batch}.",
            work,
            {"title": "MB", "scale": "log"},
            [(row["name"], row["multiply_adds"], *[row["saved_bytes"] / 1e6] * 3) for row in rows],
        ),
    ]
    for key, title in (("published", "Published accuracy"), ("measured", "Measured accuracy")):
        for data in dict.fromkeys(row[key]["data"] for row in rows if row[key]):
            known = [row for row in rows if row[key] and row[key]["data"] == data]
            points = [(r["name"], _milliseconds(r)[0], *[r[key]["accuracy"]] * 3) for r in known]
            share = {"title": "accuracy", "scale": "share"}
            caption = "Over the time that one image takes here."
            drawn.append(_figure(f"{title} on {data}", caption, latency, share, points))
    return drawn


def _milliseconds(row: Row) -> tuple[float, float, float]:
    times = row["latency_seconds"]
    return 1e3 * times["median"], 1e3 * times["low"], 1e3 * times["high"]


def _figure(
    title: str,
    caption: str,
    x: Mapping[str, str],
    y: Mapping[str, str],
    points: Sequence[tuple[str, Number, Number, Number, Number]],
) -> dict[str, Any]:
    """Points (name, x, y, low, high), each a line of its own."""
    lines = [
        {"name": name, "x": [at], "mean": [mean], "low": [low], "high": [high], "dashed": False}
        for name, at, mean, low, high in points
    ]
    figure = {"kind": "lines", "title": title, "caption": caption, "x": dict(x), "y": dict(y),
              "lines": lines, "level": None}  # fmt: skip
    return {**figure, "alternative": alternative(figure)}
