"""The rows of a comparison: what the runs of one network came to, over its seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx import store
from plusx.report.history import EpochPoint, read_history
from plusx.report.metrics import OF_CLASSES, better


@dataclass(frozen=True)
class Run:
    """A finished run: its network, seed, final scores and its way there."""

    name: str
    seed: int
    parameters: int
    multiply_adds: int
    data: str
    scores: Mapping[str, float]  # the foremost first
    count: int  # images that the scores are over
    averaging: str  # of scores over classes; empty where there are none
    train_error: float | None  # of the training images, after training; None: no such thing
    points: tuple[EpochPoint, ...]
    seconds_per_epoch: float

    @property
    def wrong(self) -> float:
        """The training error of a classifier."""
        assert self.train_error is not None
        return self.train_error


def read_finished(folder: Path, name: str, seed: int, split: str) -> Run:
    """The finished run in this folder, with its scores on the split."""
    result = store.read_json(folder / "result.json")
    tested = split != "validation"
    figures = store.read_json(folder / f"{split}.json") if tested else result["validation"]
    return Run(
        name=name,
        seed=seed,
        parameters=result["parameters"],
        multiply_adds=result["multiply_adds"],
        data=result["data"],
        scores={score: figures[score] for score in result.get("metrics", OF_CLASSES)},
        count=figures["count"],
        averaging=figures.get("averaging", ""),
        train_error=result["train_error"],
        points=read_history(folder / "log.jsonl", result.get("metrics", OF_CLASSES)[0]),
        seconds_per_epoch=_seconds(folder / "timing.jsonl", result["steps"] / result["epochs"]),
    )


def row(name: str, runs: Sequence[Run], threshold: float) -> dict[str, Any]:
    """One row: counts by arithmetic, scores as mean and spread over the runs.

    `std` is the sample's standard deviation (n - 1), None for one seed. `train_error` is the share
    of the training images that the trained network gets wrong. `epochs_to_threshold` says for each
    seed the first epoch whose evaluation reached the threshold, None where none did; its mean is
    over those seeds that did.
    """
    first = next(iter(runs[0].scores))
    reached = [epochs_to(run.points, threshold, first) for run in runs]
    wrong = [run.train_error for run in runs if run.train_error is not None]
    known = [float(epoch) for epoch in reached if epoch is not None]
    return {
        "name": name,
        "parameters": runs[0].parameters,
        "multiply_adds": runs[0].multiply_adds,
        "seeds": [run.seed for run in runs],
        **{score: spread([run.scores[score] for run in runs]) for score in runs[0].scores},
        **({"train_error": spread(wrong)} if len(wrong) == len(runs) else {}),
        "seconds_per_epoch": spread([run.seconds_per_epoch for run in runs]),
        "epochs_to_threshold": {
            "threshold": threshold,
            "mean": mean(known) if known else None,
            "std": stdev(known) if len(known) > 1 else None,
            "seeds": reached,
            "reached": len(known),
        },
    }


def curve(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """A network's way over the epochs: mean, lowest and highest over its runs.

    Only epochs that every run of the network has come to are in it.
    """
    length = min(len(run.points) for run in runs)
    columns = [[run.points[index] for run in runs] for index in range(length)]
    said: dict[str, Any] = {"name": name, "epochs": [column[0].epoch for column in columns]}
    names = {next(iter(runs[0].scores)): "score", "loss": "loss"}
    for key, part_of in {**names, "train_error": "train_error", "train_loss": "train_loss"}.items():
        bands = [_band([getattr(point, part_of) for point in column]) for column in columns]
        said[key] = {
            part: [band[index] for band in bands]
            for index, part in enumerate(("mean", "low", "high"))
        }
    return said


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation of the sample (None for one value) and the value of each seed."""
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def epochs_to(points: Sequence[EpochPoint], threshold: float, key: str = "accuracy") -> int | None:
    """The first epoch whose score, the figure of this key, is as good as the threshold."""
    wanted = better(key, threshold)
    return next(
        (p.epoch for p in points if p.score is not None and better(key, p.score) >= wanted), None
    )


def _band(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None, None
    return mean(known), min(known), max(known)


def _seconds(timing: Path, steps: float) -> float:
    """The seconds that so many steps of training took on average, without evaluation and saving."""
    lines = [json.loads(line) for line in store.read_bytes(timing).splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    made = sum(line["steps"] for line in epochs)
    return sum(line["seconds"] for line in epochs) / made * steps if made else 0.0
