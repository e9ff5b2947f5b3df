"""Results of comparisons and runs that were never made, for tests of what is said about them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plusx.report.history import EpochPoint
from plusx.statistics import share_interval
from plusx.study.finding import comparison_finding
from plusx.study.results import FinishedRun, curve, summarise


def run(name: str, seed: int, accuracy: float, epochs: int = 6) -> FinishedRun:
    """A run that ends at this accuracy."""
    points = tuple(
        EpochPoint(
            epoch=epoch,
            train_loss=2.3 * math.exp(-epoch),
            train_error=1 - accuracy * epoch / epochs,
            score=accuracy * epoch / epochs,
            loss=1 / epoch,
        )
        for epoch in range(1, epochs + 1)
    )
    return FinishedRun(
        name=name,
        seed=seed,
        parameters=269434,
        multiply_adds=2516608,
        data="digits",
        metrics=dict.fromkeys(("accuracy", "precision", "recall", "f1"), accuracy),
        count=300,
        averaging="macro",
        train_error=1 - accuracy,
        points=points,
        seconds_per_epoch=0.5,
    )


def comparison(
    accuracies: Mapping[str, Sequence[float]], *, threshold: float = 0.9, **changed: Any
) -> dict[str, Any]:
    """A comparison's result; for each network the accuracy of every seed."""
    made = {
        name: [run(name, seed, value) for seed, value in enumerate(values)]
        for name, values in accuracies.items()
    }
    rows = []
    for name, runs in made.items():
        said = share_interval([each.metrics["accuracy"] for each in runs], 300)
        rows.append(
            {**summarise(name, runs, threshold), "interval": said and [said.low, said.high]}
        )
    result = {
        "kind": "compare",
        "data": "digits",
        "split": "validation",
        "count": 300,
        "averaging": "macro",
        "seeds": list(range(len(next(iter(accuracies.values()))))),
        "threshold": threshold,
        "length": "6 epochs",
        "finding": comparison_finding(rows, count=300, split="validation"),
        "rows": rows,
        "curves": [curve(name, runs) for name, runs in made.items()],
        "recipe": "epochs = 6\n",
        "versions": {"plusx": "0.1.0", "python": "3.11.2", "torch": "2.11.0"},
        "machine": {"processor": "A processor", "cores": 2, "platform": "Linux", "device": "cpu"},
        "jobs": "2 runs of 1 thread",
        "command": "plusx compare digits",
        "date": "2026-01-31T12:00:00+00:00",
        "seconds": 75.2,
    }
    return {**result, **changed}


DEGRADED = {
    "plain20": (0.973, 0.977, 0.98),
    "resnet20": (0.98, 0.983, 0.987),
    "plain56": (0.30, 0.42, 0.25),
    "resnet56": (0.977, 0.98, 0.983),
}


def single(classes: Sequence[str], **changed: Any) -> dict[str, Any]:
    """A run's result.json: of each class 9 images are right and 1 is taken for the next class."""
    size = len(classes)
    confusion = [
        [9 if column == index else int(column == (index + 1) % size) for column in range(size)]
        for index in range(size)
    ]
    per_class = [
        {"label": name, "precision": 0.9, "recall": 0.9, "f1": 0.9, "count": 10} for name in classes
    ]
    result = {
        "name": "resnet20",
        "data": "digits",
        "seed": 0,
        "split": "validation",
        "validation": {
            "count": 10 * size,
            "loss": 0.3,
            "accuracy": 0.9,
            "averaging": "macro",
            "f1": 0.9,
            "per_class": per_class,
            "confusion": confusion,
        },
        "train_error": 0.02,
        "parameters": 269434,
        "multiply_adds": 2516608,
        "epochs": 6,
        "steps": 114,
        "best_epoch": None,
    }
    return {**result, **changed}
