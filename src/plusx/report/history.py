"""The training curves of a run, read from the log in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plusx import store
from plusx.errors import UserError


@dataclass(frozen=True)
class EpochPoint:
    """The metrics of a run at the end of an epoch; None if it was not evaluated."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch
    train_error: float | None  # fraction of wrong predictions during the epoch
    score: float | None  # the first metric of the validation split, such as the accuracy
    loss: float | None
    projection_std: float | None = None  # of self-supervised learning with two views


def read_history(log: Path, score: str = "accuracy") -> tuple[EpochPoint, ...]:
    """Read a point for every epoch of a log.jsonl; `score` is the key of the metric."""
    points = []
    for number, text in enumerate(store.read_part(log).splitlines(), 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise TypeError("no object")
            if "train_loss" in line:
                points.append(_point(line, score))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{log}, line {number} is not what plusx wrote: restore the file, or train again "
                "with another --out"
            ) from None
    return tuple(points)


def _point(line: dict[str, Any], score: str) -> EpochPoint:
    validation = line.get("validation", {})
    return EpochPoint(
        epoch=line["epoch"],
        train_loss=line["train_loss"],
        train_error=line.get("train_error"),
        score=validation.get(score),
        loss=validation.get("loss"),
        projection_std=validation.get("projection_std"),
    )
