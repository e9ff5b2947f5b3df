"""The table of a comparison as text: networks in rows, or in columns where that fits better."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


_HEAD = ("network", "parameters", "multiply-adds", "accuracy %", "precision %", "recall %", "F1 %",
         "train error %", "s/epoch")  # fmt: skip


def comparison_table(result: Mapping[str, Any], width: int | None = None) -> str:
    """The rows of a comparison's result for a terminal `width` characters wide (None: any).

    Percentages are the mean over the seeds and, after ±, the spread.
    """
    threshold = f"epochs to {_percent(result['threshold'])} %"
    head = [*_HEAD, threshold]
    cells = [head, *([str(cell) for cell in _cells(row)] for row in result["rows"])]
    turned = [list(column) for column in zip(*cells, strict=True)]
    lines = _lines(cells)
    if width is not None and len(lines[0]) > width:
        lines = min(lines, _lines(turned), key=lambda drawn: len(drawn[0]))
    notes = _notes(result)
    if width is not None:
        notes = textwrap.wrap(" ".join(notes), max(width, 40))
    return "\n".join([*lines, "", *notes])


def _cells(row: Mapping[str, Any]) -> list[str]:
    scores = ("accuracy", "precision", "recall", "f1", "train_error")
    return [
        row["name"],
        f"{row['parameters']:,}",
        f"{row['multiply_adds']:,}",
        *(_spread(row[key]) for key in scores),
        f"{row['seconds_per_epoch']['mean']:.2f}",
        _epochs(row["epochs_to_threshold"]),
    ]


def _lines(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _notes(result: Mapping[str, Any]) -> list[str]:
    seeds = len(result["seeds"])
    spread = f"; ± is the standard deviation over {seeds} seeds (n - 1)" if seeds > 1 else ""
    averages = f"precision, recall and F1 are {result['averaging']} averages over the classes"
    return [
        f"{result['split']} split, {result['count']:,} images{spread};",
        f"{averages}; train error is that of the trained network;",
        f"seconds are of training alone, {result['jobs']} at a time.",
    ]


def _spread(value: Mapping[str, Any]) -> str:
    spread = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{spread}"


def _epochs(value: Mapping[str, Any]) -> str:
    seeds, reached = len(value["seeds"]), value["reached"]
    if not reached:
        return "not reached"
    said = f"{value['mean']:.1f}".removesuffix(".0")
    return said if reached == seeds else f"{said} ({reached} of {seeds})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")
