"""The page of predictions: every image with what is told of it, and with the truth where known."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import prod
from pathlib import Path
from typing import Any

from PIL import Image

from plusx import store
from plusx.errors import UserError
from plusx.report import page
from plusx.report.page import Cell, Column


MOST = 60  # images on the page; all are in side-by-side/
_NAME = re.compile(r"side-by-side/[\w-]+\.png")
_LARGEST = 64 << 20  # bytes of a picture
_HEAVY = 1 << 19  # bytes from which a picture stands on the page as a smaller JPEG
_SIDES = 1920, 960  # its width and height, at most
_LISTED = 4  # classes or boxes that are named under an image
SHOWN = 0.3  # boxes of a lower score are in the JSON alone: they are neither drawn nor counted


def seen_page(
    result: Mapping[str, Any],
    pictures: Sequence[bytes],
    colours: Sequence[tuple[int, int, int]],
    run: str,
) -> str:
    """The page of a predictions.json about masks or boxes. `pictures` has a PNG for each image."""
    rows: Sequence[Mapping[str, Any]] = result["predictions"]
    more = (
        page.note(f"The first {MOST} of {len(rows)} images; all are in side-by-side/.")
        if len(rows) > MOST
        else ""
    )
    body = page.section("Images", figures(rows[:MOST], pictures[:MOST]) + more)
    body += page.section("Classes", _classes(result["classes"], rows))
    named = [("#{:02x}{:02x}{:02x}".format(*colour),) * 2 for colour in colours]
    return page.document(
        title=f"plusx: predictions of {run}",
        kicker=f"plusx predict · {run}",
        finding=_finding(rows),
        context=_context(rows),
        body=body,
        colours=named,
        pictures=True,
    )


def figures(rows: Sequence[Mapping[str, Any]], pictures: Sequence[bytes]) -> str:
    """A figure for each image, with its picture as a PNG."""
    shown = "".join(_image(row, picture) for row, picture in zip(rows, pictures, strict=True))
    return f'<div class="explained seen">\n{shown}</div>\n'


def read_seen(folder: Path) -> str:
    """The figures of predictions that were written into a folder; nothing where there are none.

    UserError: what it holds is not what was written there.
    """
    if not (folder / "predictions.json").is_file():
        return ""
    rows = store.read_json(folder / "predictions.json")["predictions"]
    pictures = []
    for row in rows:
        if not _NAME.fullmatch(row["side_by_side"]):
            raise UserError(f"{folder}: {row['side_by_side']!r} is no picture of a prediction")
        pictures.append(store.read_bytes(folder / row["side_by_side"], _LARGEST))
    return figures(rows, pictures)


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    images = f"{len(rows):,} {'image' if len(rows) == 1 else 'images'}"
    if "boxes" in rows[0]:
        count = sum(len(shown(row["boxes"])) for row in rows)
        return f"{count:,} {'box' if count == 1 else 'boxes'} in {images}."
    known = [row["truth"]["mean_iou"] for row in rows if row.get("truth")]
    if not known:
        return f"A class for every pixel of {images}."
    which = f"{len(known):,} whose truth is known" if len(known) < len(rows) else "images"
    return (
        f"A class for every pixel of {images}: mean IoU {100 * sum(known) / len(known):.1f} %, the "
        f"mean over the {which}."
    )


def _context(rows: Sequence[Mapping[str, Any]]) -> str:
    truth = " To the right of that the truth, where it is known." if any_truth(rows) else ""
    sure = f" Boxes of a score below {SHOWN} are in predictions.json." if "boxes" in rows[0] else ""
    return f"To the left the image, beside it what the network tells.{truth}{sure}"


def any_truth(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the truth of any image is known."""
    return any("truth" in row for row in rows)


def _image(row: Mapping[str, Any], picture: bytes) -> str:
    told = "what the network tells" + (", and the truth" if "truth" in row else "")
    alternative = f"{row['path']}, {told}"
    lines = [f'<span class="path">{escape(row["path"])}</span>', escape(said(row))]
    if row.get("truth") and "mean_iou" in row["truth"]:
        lines.append(f"mean IoU {100 * row['truth']['mean_iou']:.1f} %")
    if "truth" in row and "boxes" in row["truth"]:
        count = len(row["truth"]["boxes"])
        lines.append(f"in truth {count} {'box' if count == 1 else 'boxes'}")
    return (
        f'<figure><div class="panels"><img src="{_embedded(picture)}" '
        f'alt="{escape(alternative)}"></div><figcaption>{"<br>".join(lines)}</figcaption>'
        "</figure>\n"
    )


def _embedded(picture: bytes) -> str:
    """A PNG as an address that holds it. Large ones are made smaller: they lie beside the page."""
    kind = "png"
    if len(picture) > _HEAVY:
        with Image.open(io.BytesIO(picture), formats=("PNG",)) as image:
            small = image.convert("RGB")
        small.thumbnail(_SIDES)
        buffer, kind = io.BytesIO(), "jpeg"
        small.save(buffer, "JPEG", quality=88, subsampling=0)
        picture = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def said(row: Mapping[str, Any]) -> str:
    """What is in an image: the largest classes, or how many boxes of which."""
    if "boxes" not in row:
        largest = sorted(row["shares"].items(), key=lambda pair: -pair[1])[:_LISTED]
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share)
    return counted(shown(row["boxes"])) or "nothing found"


def shown(boxes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The boxes whose score is high enough to be drawn and counted."""
    return [box for box in boxes if box["score"] >= SHOWN]


def counted(boxes: Sequence[Mapping[str, Any]]) -> str:
    """How many boxes of which class, the most frequent first."""
    counts: dict[str, int] = {}
    for box in boxes:
        counts[box["label"]] = counts.get(box["label"], 0) + 1
    return ", ".join(
        f"{count} {name}" for name, count in sorted(counts.items(), key=lambda p: -p[1])
    )


def _classes(classes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    if "boxes" in rows[0]:
        columns = [Column("Class", number=False), Column("Boxes")]
        found = [
            sum(box["label"] == name for row in rows for box in shown(row["boxes"]))
            for name in classes
        ]
        cells = [
            [Cell(name, name, colour=place), Cell(f"{count:,}", count)]
            for place, (name, count) in enumerate(zip(classes, found))
        ]
        return page.table(columns, cells, caption="Boxes of every class")
    columns = [Column("Class", number=False), Column("Share of the pixels", "%")]
    pixels = [prod(row["size"]) for row in rows]  # of volumes voxels
    cells = []
    for place, name in enumerate(classes):
        share = sum(row["shares"][name] * each for row, each in zip(rows, pixels)) / sum(pixels)
        cells.append([Cell(name, name, colour=place), Cell(f"{100 * share:.1f}", share)])
    return page.table(columns, cells, caption="The share of every class")
