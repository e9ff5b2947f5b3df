"""The page of `plusx bench`: what networks cost on one machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page, values
from plusx.report.colours import Palette
from plusx.report.figures import alternative, figure, names
from plusx.report.page import Cell, Column
from plusx.report.setting import moment, setting


def bench_page(result: Mapping[str, Any]) -> str:
    """The page of a bench.json."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    told = result["figures"]
    palette = Palette([name for each in told for name in names(each)])
    drawn = "".join(
        figure({**each, "alternative": alternative(each)}, palette, f"f{number}")
        for number, each in enumerate(told)
    )
    notes = [NOTE, *sources(rows)]
    stopped = "" if result["stopped_by"] is None else " A signal ended it early."
    body = (
        f'<div class="figures">\n{drawn}</div>\n'
        + page.section("Results", _table(rows, result["batch"]) + "".join(map(page.note, notes)))
        + page.section("What was run", _what_was_run(result))
    )
    return page.document(
        title="plusx: networks on this machine",
        kicker="plusx bench",
        finding=result["finding"],
        context=f"Medians of rounds ({result['rounds']}), every network once in each.{stopped}",
        body=body,
        colours=palette.colours,
    )


NOTE = (
    "One image and images a second are of answers, without reading and preparing images. A "
    "training step is forward, loss, backward and an update by SGD. Accuracies are not measured "
    "here: published ones are those of papers, measured ones are from a folder of results."
)


def _table(rows: Sequence[Mapping[str, Any]], batch: int) -> str:
    flattened = [flat(row) for row in rows]
    heads, cells = [Column("Network", number=False)], [[Cell(r["name"], r["name"])] for r in rows]
    for column in columns(batch):
        if all(row[column["key"]] is None for row in flattened):
            continue
        title, unit = values.heading(column)
        heads.append(Column(title, unit, number=column["kind"] != "text"))
        for own, each in zip(cells, values.told(column, flattened), strict=True):
            own.append(Cell(each.text, "" if each.order is None else each.order, note=each.aside))
    return page.table(heads, cells, caption="Networks on this machine")


def _what_was_run(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return page.facts(
        [
            ("Command", result["command"]),
            ("Finished", moment(result["date"])),
            ("Threads", str(machine["threads"])),
            *setting(machine),
        ]
    )


def columns(batch: int) -> list[dict[str, str]]:
    """The columns of the table: keys of `flat` rows."""
    told = (
        ("parameters", "Parameters", "", "count"),
        ("multiply_adds", "Multiply-adds", "", "count"),
        ("published", "Accuracy", "published", "share"),
        ("measured", "Accuracy", "measured", "share"),
        ("latency", "One image", "ms", "number"),
        ("latency_interval", "Interval", "ms, 95 %", "text"),
        ("images_per_second", "Images", "a second", "number"),
        ("step", "Training step", "ms", "number"),
        ("saved", "Kept for backward", f"MB, {batch} images", "number"),
    )
    return [{"key": key, "title": title, "unit": unit, "kind": kind}
            for key, title, unit, kind in told]  # fmt: skip


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
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


def sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose the accuracies of the table are, a line for each source."""
    lines: dict[str, list[str]] = {}
    for key in ("published", "measured"):
        for row in rows:
            if row[key]:
                said = f"{key}: {row[key]['data']}, {row[key]['source']}"
                lines.setdefault(said, []).append(row["name"])
    return [f"Accuracy {said} ({', '.join(names)})." for said, names in lines.items()]


def figures(rows: Sequence[Mapping[str, Any]], batch: int) -> list[dict[str, Any]]:
    """What the page draws: time over work, memory over work, accuracy over time."""
    work = {"title": "multiply-adds of one image", "scale": "log"}
    latency = {"title": "ms for one image", "scale": "log"}
    drawn = [
        _figure(
            "Time for one image",
            "The median of the rounds, with its interval of 95 %.",
            work,
            latency,
            [(row["name"], row["multiply_adds"], *_ends(row["latency_seconds"])) for row in rows],
        ),
        _figure(
            "Memory of training",
            f"What the forward pass keeps for the backward pass, of a batch of {batch}.",
            work,
            {"title": "MB", "scale": "log"},
            [(row["name"], row["multiply_adds"], *[row["saved_bytes"] / 1e6] * 3) for row in rows],
        ),
    ]
    for key, title in (("published", "Published accuracy"), ("measured", "Measured accuracy")):
        for data in dict.fromkeys(row[key]["data"] for row in rows if row[key]):
            known = [row for row in rows if row[key] and row[key]["data"] == data]
            drawn.append(
                _figure(
                    f"{title} on {data}",
                    "Over the time that one image takes here.",
                    latency,
                    {"title": "accuracy", "scale": "share"},
                    [
                        (row["name"], _ends(row["latency_seconds"])[0], *[row[key]["accuracy"]] * 3)
                        for row in known
                    ],
                )
            )
    return drawn


def _ends(value: Mapping[str, float]) -> tuple[float, float, float]:
    """In milliseconds."""
    return 1e3 * value["median"], 1e3 * value["low"], 1e3 * value["high"]


def _figure(
    title: str,
    caption: str,
    x: Mapping[str, str],
    y: Mapping[str, str],
    points: Sequence[tuple[str, float | int, float | int, float | int, float | int]],
) -> dict[str, Any]:
    """Points (name, x, y, low, high), each a line of its own."""
    lines = [
        {
            "name": name,
            "x": [place],
            "mean": [mean],
            "low": [low],
            "high": [high],
            "dashed": False,
        }
        for name, place, mean, low, high in points
    ]
    return {
        "kind": "lines",
        "title": title,
        "caption": caption,
        "alternative": "",
        "x": dict(x),
        "y": dict(y),
        "lines": lines,
        "level": None,
    }
