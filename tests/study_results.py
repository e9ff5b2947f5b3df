"""Results of comparisons and runs that were never made, for tests of what is said about them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx.recipe import load_recipe
from plusx.report.history import EpochPoint
from plusx.study.comparison import COMPARISON
from plusx.study.experiment import TrialResult, grouped
from plusx.study.results import FinishedRun
from plusx.study.trial import Split, Trial


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
        noun="image",
        averaging="macro",
        train_error=1 - accuracy,
        points=points,
        seconds_per_epoch=0.5,
    )


def comparison(
    accuracies: Mapping[str, Sequence[float]],
    *,
    threshold: float = 0.9,
    split: Split = "validation",
    **changed: Any,
) -> dict[str, Any]:
    """A comparison's result; for each network the accuracy of every seed."""
    recipe = load_recipe("digits", [f"compare.threshold={threshold}"])
    assert recipe.compare is not None
    groups = grouped(
        TrialResult(
            trial=Trial(
                name=name, seed=seed, recipe=recipe, split=split, factors={"threshold": threshold}
            ),
            folder=Path(name),
            run=run(name, seed, accuracy),
            values={},
        )
        for name, accuracies_of_seeds in accuracies.items()
        for seed, accuracy in enumerate(accuracies_of_seeds)
    )
    rows = COMPARISON.rows(groups)
    result = {
        "kind": "compare",
        "title": COMPARISON.title,
        "question": COMPARISON.question,
        "data": "digits",
        "split": split,
        "seeds": list(range(len(next(iter(accuracies.values()))))),
        "length": "6 epochs",
        "finding": COMPARISON.finding(rows),
        "columns": COMPARISON.columns(recipe.compare, groups),
        "rows": rows,
        "tables": [],
        "marked": [],
        "figures": COMPARISON.figures(groups, rows),
        "notes": COMPARISON.notes(recipe, recipe.compare, groups).splitlines(),
        **COMPARISON.extra(recipe.compare, groups),
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
