"""The page of an explanation: every image with its map, and whether to believe the maps."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plusx.report import page
from plusx.report.colours import Palette
from plusx.report.figures import alternative, figure, names
from plusx.report.page import Cell, Column
from plusx.report.setting import moment, setting


MOST = 60  # images on the page; all are in explanation.json and overlays/
_OPPONENTS = {"map": "the map", "random": "random maps", "centre": "a blob in the middle"}


def explanation_page(result: Mapping[str, Any], pictures: Sequence[Sequence[bytes]]) -> str:
    """The page of an explanation.json. `pictures` has three PNGs an image: it, its map, both."""
    rows: Sequence[Mapping[str, Any]] = result["images"]
    figures: Sequence[Mapping[str, Any]] = result["figures"]
    palette = Palette([name for told in figures for name in names(told)])
    shown = "".join(
        _image(row, three, result["title"])
        for row, three in zip(rows[:MOST], pictures[:MOST], strict=True)
    )
    more = (
        page.note(f"The first {MOST} of {len(rows)} images; all are in overlays/.")
        if len(rows) > MOST
        else ""
    )
    body = page.section("Images", f'<div class="explained">\n{shown}</div>\n{more}')
    if result["faithfulness"] is not None:
        drawn = "".join(
            figure({**told, "alternative": alternative(told)}, palette, f"f{number}")
            for number, told in enumerate(figures)
        )
        body += page.section(
            "Does the map find what the network uses?",
            f'<div class="figures">\n{drawn}</div>\n' + _faithfulness(result["faithfulness"]),
        )
    if result["forgotten"]:
        body += page.section(
            "Does the map depend on what was learned?",
            _forgotten(result["forgotten"], result["about_forgetting"]),
        )
    if result["failed"]:
        body += page.section("Files that could not be used", _failed(result["failed"]))
    body += page.section("What was run", _what_was_run(result))
    return page.document(
        title=f"plusx: {result['title']} of {result['run']}",
        kicker=f"plusx explain · {result['run']}",
        finding=result["finding"],
        context=_context(result),
        body=body,
        colours=palette.colours,
        pictures=True,
    )


def _context(result: Mapping[str, Any]) -> str:
    down, along = result["positions"]
    height, width = result["size"]
    whose = (
        f"the class {result['class']}" if result["class"] else "the class that the network names"
    )
    of = f"{down} x {along} positions" if (down, along) != (height, width) else "single pixels"
    return (
        f"{result['title']} ({result['source']}) shows what speaks for {whose}, in maps of {of} "
        f"for images of {height} x {width} pixels. Bright is much, for each image by itself; what "
        "speaks against the class is left dark."
    )


def _image(row: Mapping[str, Any], three: Sequence[bytes], title: str) -> str:
    said = f"{row['label']}, {100 * row['probability']:.1f} %"
    other = row["class"] != row["label"]
    about = f"{row['class']}, {100 * row['class_probability']:.1f} %" if other else ""
    texts = (
        f"{row['path']} as the network saw it",
        f"{title}: the map for {row['class']}",
        "the map over the image",
    )
    pictures = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(text)}">'
        for png, text in zip(three, texts, strict=True)
    )
    lines = [f'<span class="said">{escape(said)}</span>']
    if other:
        lines.append(f"map for {escape(about)}")
    if row["nothing"]:
        lines.append("nothing in it speaks for the class")
    if "deletion" in row:
        lines.append(
            f"deletion {_beside(row['deletion'])}<br>insertion {_beside(row['insertion'])}"
        )
    return (
        f'<figure><div class="panels">{pictures}</div><figcaption>'
        f'<span class="path">{escape(row["path"])}</span>' + "<br>".join(lines) + "</figcaption>"
        "</figure>\n"
    )


def _beside(told: Mapping[str, float]) -> str:
    return (
        f"{told['map']:.2f} <small>(random {told['random']:.2f}, centre {told['centre']:.2f})"
        "</small>"
    )


def _faithfulness(faith: Mapping[str, Any]) -> str:
    columns = [
        Column("Map", number=False),
        Column("Deletion", "lower is better"),
        Column("the map's lead"),
        Column("Insertion", "higher is better"),
        Column("the map's lead"),
    ]
    rows = []
    for key, title in _OPPONENTS.items():
        cells = [Cell(title)]
        for measure in ("deletion", "insertion"):
            told = faith[measure][key]
            spread = "" if told["std"] is None else f"± {told['std']:.3f}"
            cells.append(Cell(f"{told['mean']:.3f}", told["mean"], note=spread))
            cells.append(_lead(told))
        rows.append(cells)
    images = "image" if faith["count"] == 1 else "images"
    return page.table(columns, rows, caption="Deletion and insertion") + page.note(
        f"Areas under the lines above, over {faith['count']} {images} (± standard deviation). The "
        "lead is how much better the map is than that row, image by image, with its interval of "
        "95 %: where it leaves out 0, the map is better (above) or worse (below). Random maps are "
        "as coarse as the map is, and five are drawn for each image."
    )


def _lead(told: Mapping[str, Any]) -> Cell:
    if "lead" not in told:
        return Cell("")
    if told["interval"] is None:
        return Cell(f"{told['lead']:+.3f}", told["lead"])
    low, high = told["interval"]
    return Cell(f"{told['lead']:+.3f}", told["lead"], note=f"{low:+.3f} to {high:+.3f}")


def _forgotten(forgotten: Sequence[Mapping[str, Any]], about: str) -> str:
    columns = [
        Column("Weights shuffled", number=False),
        Column("Rank correlation"),
        Column("Without its sign"),
    ]
    rows = []
    for index, each in enumerate(forgotten):
        cells = [Cell(each["title"], index)]
        for key in ("rank_correlation", "without_sign"):
            told = each[key]
            spread = "" if told["std"] is None else f"± {told['std']:.2f}"
            cells.append(Cell(f"{told['mean']:z.2f}", told["mean"], note=spread))
        rows.append(cells)
    images, networks = forgotten[0]["images"], forgotten[0]["networks"]
    return (
        f"<p>{escape(about)}</p>\n"
        + page.table(columns, rows, caption="Maps of networks that have forgotten")
        + page.note(
            "The network forgets from its head downwards: the values of each tensor are shuffled "
            "(Adebayo et al. 2018, their cascade). Spearman's rank correlation with the map of "
            f"the trained network, over {images} {'image' if images == 1 else 'images'} and "
            f"{networks} {'network' if networks == 1 else 'networks'} each (± standard "
            "deviation): 1 is the same map, 0 another one."
        )
    )


def _failed(failed: Sequence[Mapping[str, str]]) -> str:
    return page.table(
        [Column("File", number=False), Column("Why", number=False)],
        [[Cell(each["path"]), Cell(each["reason"])] for each in failed],
        caption="Files that could not be used",
    )


def _what_was_run(result: Mapping[str, Any]) -> str:
    place = result["stage"] or "the tensor that is pooled"
    pairs = [
        ("Command", result["command"]),
        ("Network", result["network"]),
        ("Method", f"{result['title']} ({result['source']})"),
        ("Maps at", place if result["method"] == "grad-cam" else "the pixels"),
        ("Seed", str(result["seed"])),
        ("Finished", moment(result["date"])),
        *setting(result["machine"]),
    ]
    return page.facts(pairs)
