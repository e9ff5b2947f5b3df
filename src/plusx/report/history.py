"""A run's way over its epochs, read from the log in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """What a run knew at the end of an epoch; what was not evaluated then is None."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch, while it trained
    train_error: float  # the same of the share of wrong answers
    accuracy: float | None  # of the validation split
    loss: float | None


def read_history(log: Path) -> tuple[Point, ...]:
    """The points of a log.jsonl, one for each epoch that was finished."""
    points = []
    with log.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "train_loss" in line:
                points.append(_point(line))
    return tuple(points)


def _point(line: dict[str, Any]) -> Point:
    validation = line.get("validation", {})
    return Point(
        epoch=line["epoch"],
        train_loss=line["train_loss"],
        train_error=line["train_error"],
        accuracy=validation.get("accuracy"),
        loss=validation.get("loss"),
    )
