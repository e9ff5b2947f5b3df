"""The HTML page of a data set."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from plusx.report import page
from plusx.report.charts import charts
from plusx.report.figures import bars_figure
from plusx.report.inspection import (
    Summary,
    counted_of,
    heading,
    image_facts,
    messages_of,
    splits_text,
    total_of,
)
from plusx.report.page import Cell, Column, Table


MAX_BARS = 40  # classes in the chart


def inspection_page(
    summary: Summary,
    pictures: Sequence[tuple[str, bytes]],
    texts: Sequence[Sequence[tuple[str, str]]],
    colours: Mapping[str, str],
) -> str:
    """Return the page.

    pictures: caption and JPEG of each example
    texts: of each example that is one, titles and texts, such as the source and the target
    colours: of the classes in the examples
    """
    return page.render(
        "inspection.html",
        {
            "finding": heading(summary),
            "summary": summary,
            "splits": splits_text(summary),
            "facts": [(key.capitalize(), value) for key, value in image_facts(summary)],
            "charts": charts([f for f in (_figure(summary), _lengths_figure(summary)) if f]),
            "classes": _table(summary, colours),
            "messages": [(title.capitalize(), texts) for title, texts in messages_of(summary)],
            "pictures": bool(pictures),
            "texts": texts,
            "examples": [(text, page.data_uri(image, "jpeg")) for text, image in pictures],
        },
    )


def _figure(summary: Summary) -> dict[str, Any] | None:
    rows = _sorted(summary)
    if not rows or summary["kind"] == "volumes":
        return None
    shown_rows = rows[:MAX_BARS]
    of = counted_of(summary)
    limited = f" The first {MAX_BARS} of {len(rows):,}." if len(rows) > MAX_BARS else ""
    return bars_figure(
        f"{of.capitalize()} of each class",
        f"Number of {of} per class and split.{limited}",
        {"title": of, "scale": "linear"},
        [row["name"] for row in shown_rows],
        {split: [row.get(split, 0) for row in shown_rows] for split in summary["splits"]},
    )


def _lengths_figure(summary: Summary) -> dict[str, Any] | None:
    counts = summary["length_counts"]
    if not counts:
        return None
    inputs, edges, unit = summary["inputs"], counts["edges"], summary["length_unit"]
    return bars_figure(
        "Lengths",
        f"Number of {inputs} by length in {unit}, from the first number to below the second.",
        {"title": inputs, "scale": "linear"},
        [f"{low:g} to {high:g}" for low, high in pairwise(edges)],
        counts["splits"],
    )


def _sorted(summary: Summary) -> list[Mapping[str, Any]]:
    """Return the classes, the most frequent first."""
    return sorted(summary["classes"], key=lambda row: -total_of(row, summary))


def _table(summary: Summary, colours: Mapping[str, str]) -> Table:
    of = counted_of(summary)
    heads = [Column("Class", number=False)]
    heads += [Column(split, of) for split in summary["splits"]]
    heads.append(Column("share", "%"))
    whole = sum(total_of(row, summary) for row in summary["classes"]) or 1
    rows = []
    for row in _sorted(summary):
        share = 100 * total_of(row, summary) / whole
        cells = [Cell(f"{row.get(s, 0):,}", row.get(s, 0)) for s in summary["splits"]]
        name = Cell(row["name"], row["name"], colour=colours.get(row["name"], ""))
        rows.append([name, *cells, Cell(f"{share:.1f}", share)])
    return Table(f"{of.capitalize()} of each class", heads, rows, cards=False)
