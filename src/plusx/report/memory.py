"""The page of `plusx bench memory`: what training holds, by depth and by plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page, values
from plusx.report.colours import Palette
from plusx.report.figures import alternative, figure, names
from plusx.report.page import Cell, Column
from plusx.report.setting import moment, setting


COLUMNS = [
    {"key": "depth", "title": "Layers", "unit": "", "kind": "count"},
    {"key": "plan", "title": "Plan", "unit": "", "kind": "text"},
    {"key": "counted", "title": "Held", "unit": "MB an image", "kind": "number"},
    {"key": "predicted", "title": "By arithmetic", "unit": "MB an image", "kind": "number"},
    {"key": "share", "title": "Of keep", "unit": "", "kind": "share"},
    {"key": "resident", "title": "Resident", "unit": "MB a batch", "kind": "number"},
]
NOTE = (
    "Held is the most that the backward pass of one image needs at a time, counted in a training "
    "step; parameters, gradients and the optimizer are not in it. By arithmetic is the same from "
    "the sentences alone. Resident is how far a step of the whole batch raises the memory of a "
    "process, with all that libraries need besides."
)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
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


def figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page draws: a line for each family of networks and plan, over depth."""
    drawn = []
    for key, title, caption in (
        (
            "saved_bytes_per_image",
            "What training holds of an image",
            "The most at a time; lines are plans, dashed ones by arithmetic.",
        ),
        (
            "resident_bytes",
            "What the process grows by",
            "The rise of resident memory in a step of the whole batch.",
        ),
    ):
        lines = []
        for name, members in _lines(rows).items():
            lines.append(_line(name, members, key, dashed=False))
            if key == "saved_bytes_per_image":
                lines.append(_line(name, members, "predicted_bytes_per_image", dashed=True))
        lines = [line for line in lines if line["x"]]
        if not lines:
            continue
        told = {
            "kind": "lines",
            "title": title,
            "caption": caption,
            "x": {"title": "layers", "scale": "linear"},
            "y": {"title": "MB", "scale": "log"},
            "lines": lines,
            "level": None,
        }
        drawn.append({**told, "alternative": alternative(told)})
    return drawn


def memory_page(result: Mapping[str, Any]) -> str:
    """The page of a memory.json."""
    told = result["figures"]
    palette = Palette([name for each in told for name in names(each)])
    drawn = "".join(figure(each, palette, f"f{number}") for number, each in enumerate(told))
    facts = [
        ("Command", result["command"]),
        ("Finished", moment(result["date"])),
        ("Batch", f"{result['batch']} images"),
        *setting(result["machine"]),
    ]
    body = (
        f'<div class="figures">\n{drawn}</div>\n'
        + page.section("Results", _table(result["rows"]) + page.note(NOTE))
        + page.section("What was run", page.facts(facts))
    )
    return page.document(
        title="plusx: memory of training",
        kicker="plusx bench memory",
        finding=result["finding"],
        context="Counted in one training step of every network under every plan.",
        body=body,
        colours=palette.colours,
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    flattened = [flat(row) for row in rows]
    heads, cells = [Column("Network", number=False)], [[Cell(r["name"], r["name"])] for r in rows]
    for column in COLUMNS:
        title, unit = values.heading(column)
        heads.append(Column(title, unit, number=column["kind"] != "text"))
        for own, each in zip(cells, values.told(column, flattened), strict=True):
            own.append(Cell(each.text, "" if each.order is None else each.order, note=each.aside))
    return page.table(heads, cells, caption="Memory of training")


def _lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of a family and a plan, by depth."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(f"{row['family']} {row['plan']}", []).append(row)
    return {name: sorted(each, key=lambda row: row["depth"]) for name, each in found.items()}


def _line(
    name: str, rows: Sequence[Mapping[str, Any]], key: str, *, dashed: bool
) -> dict[str, Any]:
    known = [row for row in rows if row[key] is not None]
    heights = [row[key] / 1e6 for row in known]
    return {
        "name": f"{name}, by arithmetic" if dashed else name,
        "x": [row["depth"] for row in known],
        "mean": heights,
        "low": heights,
        "high": heights,
        "dashed": dashed,
    }
