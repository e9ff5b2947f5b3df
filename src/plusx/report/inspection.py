"""The summary of a data set as text for a terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from plusx.errors import counted, printable
from plusx.report.text_table import rows_table


MAX_ROWS = 20  # classes in a terminal
MAX_LINES = 10  # messages of a kind in a terminal

Summary = Mapping[str, Any]
COUNTED = {"boxes": "boxes", "masks": "pixels"}  # of each class; by default, the inputs


def heading(summary: Summary) -> str:
    """Return one line about the data set."""
    count, classes = summary["count"], len(summary["classes"])
    what = summary["inputs"]
    words = _count(count, what)
    if what == "volumes" and not summary["classes"]:
        return words
    if summary["files"]:
        return f"{words} of {_count(summary['files'], 'images')}"
    if summary["annotation"] == "people":
        return f"{words} of {classes:,} people"
    if summary["annotation"] == "boxes":
        boxes = sum(row.get(split, 0) for row in summary["classes"] for split in summary["splits"])
        return f"{words} with {_count(boxes, 'boxes')} of {_count(classes, 'classes')}"
    return f"{words} of {_count(classes, 'classes')}" if classes else words


def inspection_text(summary: Summary, width: int | None = None) -> str:
    """Return the output of `plusx info PATH`."""
    wide = max(width or 100, 60)
    others = [f"{kind}: {reason}" for kind, reason in summary["other_kinds"].items()]
    first = f"{summary['path']}: {heading(summary)}"
    pairs = [("kind", f"{summary['kind']}: {summary['reason']}")]
    if others:
        pairs.append(("also", f"{'; '.join(others)} (--kind {next(iter(summary['other_kinds']))})"))
    pairs.append(("splits", splits_text(summary)))
    pairs += image_facts(summary)
    lines = [first, ""]
    for key, value in pairs:
        lines += textwrap.wrap(f"{key:9} {value}", wide, subsequent_indent=" " * 10)
    if table := _class_table(summary, width):
        lines += ["", table]
    for title, messages in messages_of(summary):
        lines += ["", f"{title}:"]
        for message in messages[:MAX_LINES]:
            lines += textwrap.wrap(f"- {message}", wide, subsequent_indent="  ")
        if len(messages) > MAX_LINES:
            lines.append(f"- and {len(messages) - MAX_LINES:,} more (--json lists them)")
    if summary["command"]:
        lines += ["", "train on it:", f"  {printable(summary['command'])}"]
        for kind, command in summary["other_commands"].items():
            lines.append(f"  {printable(command)}   (as {kind})")
    return "\n".join(lines)


def splits_text(summary: Summary) -> str:
    """Return the splits with their numbers of images and their origin."""
    counts = ", ".join(f"{split} {count:,}" for split, count in summary["splits"].items())
    own_splits = summary["own_splits"]
    if summary["is_named"] or "all" in summary["splits"]:
        return counts
    if not own_splits:
        return f"{counts}; drawn by the seed, as the data has no splits of its own"
    if "validation" in summary["splits"] and "validation" not in own_splits:
        return f"{counts}; validation is drawn from train by the seed"
    return counts


def image_facts(summary: Summary) -> list[tuple[str, str]]:
    """Return sizes, formats and channels of the images as (name, text)."""
    facts = []
    if volumes := summary.get("volumes"):
        facts += _volume_facts(volumes)
    if sizes := summary["sizes"]:
        low, middle, high = (
            " x ".join(f"{n:,}" for n in sizes[k]) for k in ("min", "median", "max")
        )
        text = f"{low} all" if low == high else f"{low} to {high}, median {middle}"
        facts.append(("sizes", text))
    if lengths := summary["lengths"]:
        low, middle, high = (f"{lengths[key]:,}" for key in ("min", "median", "max"))
        unit, total = summary["length_unit"], lengths["total"]
        together = f"; {_duration(total)} together" if unit == "s" else ""
        facts.append(("lengths", f"{low} to {high} {unit}, median {middle}{together}"))
    if targets := summary["target_lengths"]:
        low, middle, high = (f"{targets[key]:,}" for key in ("min", "median", "max"))
        facts.append(("targets", f"{low} to {high} characters, median {middle}"))
    if summary["formats"]:
        facts.append(("formats", _counts(summary["formats"])))
    if summary["modes"]:
        facts.append(("channels", _counts(summary["modes"])))
    return facts


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _volume_facts(volumes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return facts about the volumes that were read as (name, text)."""
    if not volumes["read"]:
        return []
    sizes = dict.fromkeys(" x ".join(map(str, shape)) for shape in volumes["shapes"])
    spacings = dict.fromkeys(" x ".join(f"{mm:g}" for mm in s) for s in volumes["spacings"])
    low, high = volumes["range"]
    masks = ", ".join(map(str, volumes["mask_values"])) or "none"
    return [
        ("voxels", "; ".join(sizes)),
        ("spacing", f"{'; '.join(spacings)} mm"),
        ("values", f"{low:g} to {high:g}; in masks {masks}"),
        ("read", f"the first {volumes['read']:,} of them"),
    ]


def messages_of(summary: Summary) -> list[tuple[str, list[str]]]:
    """Return the messages by title, the most severe first."""
    serious = [f["message"] for f in summary["findings"] if f["serious"]]
    others = [f["message"] for f in summary["findings"] if not f["serious"]]
    groups = [
        ("training stops", [*summary["problems"]]),
        ("metrics may be too good", serious),
        ("left out", [*summary["left_out"]]),
        ("warnings", [*summary["warnings"], *others]),
    ]
    return [(title, messages) for title, messages in groups if messages]


def counted_of(summary: Summary) -> str:
    """Return the name of what is counted for each class: boxes, pixels, or the inputs."""
    inputs: str = summary["inputs"]
    return COUNTED.get(summary["annotation"], inputs)


def total_of(row: Mapping[str, Any], summary: Summary) -> int:
    return sum(row.get(split, 0) for split in summary["splits"])


def _class_table(summary: Summary, width: int | None) -> str:
    """Return the table of the classes, in their order."""
    of, rows = counted_of(summary), summary["classes"]
    sum_of_all = sum(total_of(row, summary) for row in rows)
    if not sum_of_all:
        return ""
    if of == "pixels":  # numbers of pixels are large: show the fraction
        columns = [{"key": "share", "title": "pixels", "unit": "%", "kind": "share"}]
    else:
        keys = [*summary["splits"], "all"]
        columns = [{"key": key, "title": key, "unit": "", "kind": "count"} for key in keys]
    shown = []
    for row in rows[:MAX_ROWS]:
        total = total_of(row, summary)
        shown.append({**row, "all": total, "share": total / sum_of_all})
    more = len(rows) - len(shown)
    lines = [f"{of} of each class:", rows_table(columns, shown, width)]
    if more:
        lines.append(f"and {more:,} more classes (--json lists them)")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return f"{next(iter(counts))} all"
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _count(count: int, nouns: str) -> str:
    noun = {"boxes": "box", "classes": "class"}.get(nouns, nouns.removesuffix("s"))
    return counted(count, noun, nouns)
