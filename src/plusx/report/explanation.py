"""The HTML page of explanations: images with their maps, and tests of faithfulness."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import page
from plusx.report.charts import charts
from plusx.report.page import Cell, Column, Table


MAX_IMAGES = 60  # images on the page; all are in explanation.json and overlays/
_BASELINES = {"map": "the map", "random": "random maps", "centre": "a Gaussian at the centre"}


def explanation_page(result: Mapping[str, Any], pictures: Sequence[Sequence[bytes]]) -> str:
    """Return the page; `pictures` has three PNGs per image: the image, its map, both."""
    rows = result["images"][:MAX_IMAGES]
    failed = [[Cell(file["path"]), Cell(file["reason"])] for file in result["failed"]]
    files = [Column("File", number=False), Column("Why", number=False)]
    faithfulness, shuffled = result["faithfulness"], result["shuffled_weights"]
    return page.render(
        "explanation.html",
        {
            "result": result,
            "finding": result["finding"],
            "pictures": True,
            "images": [
                (row, [page.data_uri(png) for png in three])
                for row, three in zip(rows, pictures[:MAX_IMAGES], strict=True)
            ],
            "charts": charts(result["figures"]),
            "faithfulness": _faithfulness(faithfulness) if faithfulness is not None else None,
            "shuffled": _shuffled(shuffled) if shuffled else None,
            "failed": Table("Files that could not be used", files, failed) if failed else None,
            "environment": page.environment_facts(result["machine"]),
            "date": page.format_date(result["date"]),
        },
    )


def _faithfulness(faithfulness: Mapping[str, Any]) -> Table:
    columns = [Column("Map", number=False),
               Column("Deletion", "lower is better"), Column("Map better by"),
               Column("Insertion", "higher is better"), Column("Map better by")]  # fmt: skip
    rows = []
    for key, title in _BASELINES.items():
        cells = [Cell(title)]
        for measure in ("deletion", "insertion"):
            area = faithfulness[measure][key]
            spread = "" if area["std"] is None else f"± {area['std']:.3f}"
            cells += [Cell(f"{area['mean']:.3f}", area["mean"], note=spread), _lead(area)]
        rows.append(cells)
    return Table("Deletion and insertion", columns, rows)


def _lead(area: Mapping[str, Any]) -> Cell:
    if "lead" not in area:
        return Cell("")
    ends = area["interval"]
    note = "" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}"
    return Cell(f"{area['lead']:+.3f}", area["lead"], note=note)


def _shuffled(shuffled: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Weights shuffled", number=False),
               Column("Rank correlation"), Column("Of absolute values")]  # fmt: skip
    rows = []
    for index, part in enumerate(shuffled):
        cells = [Cell(part["title"], index)]
        for key in ("rank_correlation", "without_sign"):
            value = part[key]
            spread = "" if value["std"] is None else f"± {value['std']:.2f}"
            cells.append(Cell(f"{value['mean']:z.2f}", value["mean"], note=spread))
        rows.append(cells)
    return Table("Maps of networks with shuffled weights", columns, rows)
