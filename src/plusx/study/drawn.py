"""Columns and figures that several studies have."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report import values
from plusx.study.plan import Made
from plusx.study.rows import curve


Column = dict[str, str]
Line = dict[str, Any]

PARAMETERS: Column = {"key": "parameters", "title": "Parameters", "unit": "", "kind": "count"}
MULTIPLY_ADDS: Column = {
    "key": "multiply_adds",
    "title": "Multiply-adds",
    "unit": "",
    "kind": "count",
}
TRAIN_ERROR: Column = {"key": "train_error", "title": "Train error", "unit": "%", "kind": "share"}
ERROR: Column = {"key": "error", "title": "Validation error", "unit": "%", "kind": "share"}

EPOCHS = {"title": "epoch", "scale": "linear"}
SHARE = {"title": "", "scale": "share"}


def training_lines(groups: Mapping[str, Sequence[Made]], dashed: Sequence[str] = ()) -> list[Line]:
    """The training error of each row over its epochs, as it was while the network changed."""
    return [
        _line(name, drawn["epochs"], drawn["train_error"], name in dashed)
        for name, drawn in _curves(groups)
    ]


def validation_lines(
    groups: Mapping[str, Sequence[Made]], dashed: Sequence[str] = ()
) -> list[Line]:
    """The validation error of each row after its epochs."""
    lines = []
    for name, drawn in _curves(groups):
        wrong = {
            key: [None if value is None else 1 - value for value in drawn["accuracy"][other]]
            for key, other in (("mean", "mean"), ("low", "high"), ("high", "low"))
        }
        lines.append(_line(name, drawn["epochs"], wrong, name in dashed))
    return lines


def lines_figure(
    title: str,
    caption: str,
    alternative: str,
    lines: Sequence[Line],
    *,
    x: Mapping[str, str] = EPOCHS,
    y: Mapping[str, str] = SHARE,
    level: float | None = None,
) -> dict[str, Any]:
    """A figure of lines."""
    return {
        "kind": "lines",
        "title": title,
        "caption": caption,
        "alternative": alternative,
        "x": dict(x),
        "y": dict(y),
        "lines": list(lines),
        "level": level,
    }


def errors_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """The errors of the trained networks, for a figure's text alternative."""
    said = "; ".join(
        f"{row['name']} {percent(row['train_error'])} in training and {percent(row['error'])} in "
        "validation"
        for row in rows
    )
    return f"Errors of the trained networks: {said}."


def percent(value: Mapping[str, Any]) -> str:
    """The mean of a spread, as a percentage."""
    return f"{100 * value['mean']:.1f} %"


def number(value: int | float | None) -> str:
    """A number in three digits, written as tables write it."""
    return "not finite" if value is None else values.number(value)


def _curves(groups: Mapping[str, Sequence[Made]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, curve(name, [each.run for each in group if each.run is not None]))
        for name, group in groups.items()
    ]


def _line(
    name: str, x: Sequence[int | float], band: Mapping[str, Sequence[float | None]], dashed: bool
) -> Line:
    known = [i for i, value in enumerate(band["mean"]) if value is not None]
    picked = {key: [band[key][i] for i in known] for key in ("mean", "low", "high")}
    return {"name": name, "x": [x[i] for i in known], **picked, "dashed": dashed}
