"""The HTML page of explained recordings: spectrograms with attributions below them."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.page import Cell, Column, Table


MAX_RECORDINGS = 60  # recordings on the page; all are in explanation.json


def recordings_page(result: Mapping[str, Any], pictures: Sequence[bytes]) -> str:
    """Return the page of an explanation of recordings; `pictures` has a PNG for each."""
    failed = [[Cell(file["path"]), Cell(file["reason"])] for file in result["failed"]]
    columns = [Column("Recording", number=False), Column("Why", number=False)]
    shown = [
        {
            "path": row["path"],
            "uri": page.data_uri(picture),
            "alt": "the spectrogram, and the same with the map",
            "is_spectrogram": True,
            "lines": [_prediction(row)],
            "texts": [],
        }
        for row, picture in zip(result["recordings"][:MAX_RECORDINGS], pictures, strict=False)
    ]
    return page.render(
        "recordings.html",
        {
            "result": result,
            "finding": result["finding"],
            "pictures": True,
            "examples": shown,
            "failed": Table("Recordings that could not be used", columns, failed)
            if failed
            else None,
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _prediction(row: Mapping[str, Any]) -> str:
    text = f"predicted: {row['label']}, {100 * row['probability']:.1f} %"
    return text if row["class"] == row["label"] else f"{text}; map for {row['class']}"
