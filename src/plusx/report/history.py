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
    train_error: float | None  # the same of the share of wrong answers
    score: float | None  # the foremost figure of the validation split, such as the accuracy
    loss: float | None


def read_history(log: Path, score: str = "accuracy") -> tuple[Point, ...]:
    """The points of a log.jsonl, an epoch that was finished each; `score` is a figure's key."""
    points = []
    with log.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "train_loss" in line:
                points.append(_point(line, score))
    return tuple(points)


def _point(line: dict[str, Any], score: str) -> Point:
    validation = line.get("validation", {})
    return Point(
        epoch=line["epoch"],
        train_loss=line["train_loss"],
        train_error=line.get("train_error"),
        score=validation.get(score),
        loss=validation.get("loss"),
    )
