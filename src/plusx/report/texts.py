"""The HTML page of explained texts: words in the colour of their attribution."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.page import Cell, Column, Table


MAX_TEXTS = 60  # texts on the page; all are in explanation.json


def texts_page(result: Mapping[str, Any]) -> str:
    """Return the page of an explanation of texts."""
    failed = [[Cell(file["path"]), Cell(file["reason"])] for file in result["failed"]]
    columns = [Column("Text", number=False), Column("Why", number=False)]
    return page.render(
        "texts.html",
        {
            "result": result,
            "finding": result["finding"],
            "texts": coloured(result["texts"][:MAX_TEXTS]),
            "failed": Table("Texts that could not be used", columns, failed) if failed else None,
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def coloured(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the texts for the template: tokens with the opacity of their colour, whether they are
    evidence for the class, and whether they are outside of the vocabulary."""
    shown = []
    for row in rows:
        largest = max(map(abs, row["attributions"]), default=0.0) or 1.0
        unknown = row.get("unknown") or [False] * len(row["tokens"])
        tokens = [
            {
                "space": token.startswith(" ") and token != " ",
                "text": token.removeprefix(" ") or token,
                "share": round(abs(value) / largest, 3),
                "for": value >= 0,
                "unknown": is_unknown,
            }
            for token, value, is_unknown in zip(
                row["tokens"], row["attributions"], unknown, strict=True
            )
        ]
        shown.append({**row, "shown": tokens})
    return shown
