"""The page of `plusx bench memory`: what training holds, by depth and by plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import alternative, charts
from plusx.report.page import result_table


COLUMNS = [
    {"key": "depth", "title": "Layers", "unit": "", "kind": "count"},
    {"key": "plan", "title": "Plan", "unit": "", "kind": "text"},
    {"key": "counted", "title": "Held", "unit": "MB an image", "kind": "number"},
    {"key": "predicted", "title": "By arithmetic", "unit": "MB an image", "kind": "number"},
    {"key": "share", "title": "Of keep", "unit": "", "kind": "share"},
    {"key": "resident", "title": "Resident", "unit": "MB a batch", "kind": "number"},
]

Row = Mapping[str, Any]


def memory_page(result: Mapping[str, Any]) -> str:
    """The page of a memory.json."""
    rows = [flat(row) for row in result["rows"]]
    return page.render(
        "memory.html",
        {
            "result": result,
            "finding": result["finding"],
            "charts": charts(result["figures"]),
            "table": result_table("Memory of training", COLUMNS, rows, name="Network"),
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def flat(row: Row) -> dict[str, Any]:
    """A row with one plain value a column."""
    predicted, resident = row["predicted_bytes_per_image"], row["resident_bytes"]
    return {
        "name": row["name"],
        "depth": row["depth"],
        "plan": row["plan"],
        "counted": row["saved_bytes_per_image"] / 1e6,
        "predicted": None if predicted is None else predicted / 1e6,
        "share": row["share_of_keep"],
        "resident": None if resident is None else resident / 1e6,
    }


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each family of networks and plan, over depth."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["depth"]):
        groups.setdefault(f"{row['family']} {row['plan']}", []).append(row)
    shown = (
        ("What training holds of an image",
         "The most at a time; lines are plans, dashed ones by arithmetic.",
         ("saved_bytes_per_image", "predicted_bytes_per_image")),
        ("What the process grows by",
         "The rise of resident memory in a step of the whole batch.",
         ("resident_bytes",)),
    )  # fmt: skip
    drawn = []
    for title, caption, keys in shown:
        lines = [
            _line(name, members, key, dashed=key.startswith("predicted"))
            for name, members in groups.items()
            for key in keys
        ]
        figure = {
            "kind": "lines",
            "title": title,
            "caption": caption,
            "x": {"title": "layers", "scale": "linear"},
            "y": {"title": "MB", "scale": "log"},
            "lines": [line for line in lines if line["x"]],
            "level": None,
        }
        if figure["lines"]:
            drawn.append({**figure, "alternative": alternative(figure)})
    return drawn


def _line(name: str, rows: Sequence[Row], key: str, *, dashed: bool) -> dict[str, Any]:
    known = [row for row in rows if row[key] is not None]
    heights = [row[key] / 1e6 for row in known]
    return {
        "name": f"{name}, by arithmetic" if dashed else name,
        "x": [row["depth"] for row in known],
        **dict.fromkeys(("mean", "low", "high"), heights),
        "dashed": dashed,
    }
