"""Finished runs: their metrics and curves, which of them may be averaged, and where they ran."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx import store
from plusx.report.history import EpochPoint, read_history
from plusx.report.metrics import OF_CLASSES, better
from plusx.statistics import spread
from plusx.study.trial import Trial


VERSIONS = ("plusx", "python", "torch", "torchvision", "numpy")
MACHINE = ("processor", "cores", "instructions", "platform", "device", "device_name")
# of environment.json: what has to be equal in runs that make one mean
SAME = ("plusx", "torch", "processor", "device_name")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its network, seed, metrics and training curve."""

    name: str
    seed: int
    parameters: int
    multiply_adds: int
    data: str
    metrics: Mapping[str, float]  # the foremost first
    count: int  # images that the metrics are over
    averaging: str  # of metrics over classes; empty where there are none
    train_error: float | None  # of the training images, after training; None: no such thing
    points: tuple[EpochPoint, ...]
    seconds_per_epoch: float

    @property
    def wrong(self) -> float:
        """The training error of a classifier."""
        assert self.train_error is not None
        return self.train_error


def read_finished(folder: Path, trial: Trial) -> FinishedRun:
    """The finished run of a trial in its folder, with its metrics on the trial's split."""
    result = store.read_json(folder / "result.json")
    validated = trial.split == "validation"
    metrics = result["validation"] if validated else store.read_json(folder / f"{trial.split}.json")
    keys = result.get("metrics", OF_CLASSES)
    return FinishedRun(
        name=trial.name,
        seed=trial.seed or 0,
        parameters=result["parameters"],
        multiply_adds=result["multiply_adds"],
        data=result["data"],
        metrics={key: metrics[key] for key in keys},
        count=metrics["count"],
        averaging=metrics.get("averaging", ""),
        train_error=result["train_error"],
        points=read_history(folder / "log.jsonl", keys[0]),
        seconds_per_epoch=_seconds(folder / "timing.jsonl", result["steps"] / result["epochs"]),
    )


def summarise(name: str, runs: Sequence[FinishedRun], threshold: float) -> dict[str, Any]:
    """A row of a comparison: counts by arithmetic, metrics as mean and spread over the runs.

    `std` is the sample's standard deviation (n - 1), None for one seed. `train_error` is the share
    of the training images that the trained network gets wrong. `epochs_to_threshold` has for each
    seed the first epoch whose evaluation reached the threshold, None where none did; its mean is
    over those seeds that did.
    """
    first = next(iter(runs[0].metrics))
    reached = [epochs_to(run.points, threshold, first) for run in runs]
    wrong = [run.train_error for run in runs if run.train_error is not None]
    epochs = [float(epoch) for epoch in reached if epoch is not None]
    return {
        "name": name,
        "parameters": runs[0].parameters,
        "multiply_adds": runs[0].multiply_adds,
        "seeds": [run.seed for run in runs],
        **{key: spread([run.metrics[key] for run in runs]) for key in runs[0].metrics},
        **({"train_error": spread(wrong)} if len(wrong) == len(runs) else {}),
        "seconds_per_epoch": spread([run.seconds_per_epoch for run in runs]),
        "epochs_to_threshold": {
            "threshold": threshold,
            "mean": mean(epochs) if epochs else None,
            "std": stdev(epochs) if len(epochs) > 1 else None,
            "seeds": reached,
            "reached": len(epochs),
        },
    }


def epochs_to(points: Sequence[EpochPoint], threshold: float, key: str = "accuracy") -> int | None:
    """The first epoch whose metric of this key is as good as the threshold."""
    goal = better(key, threshold)
    return next(
        (p.epoch for p in points if p.score is not None and better(key, p.score) >= goal), None
    )


def incomparable(folders: Mapping[Path, str]) -> dict[Path, str]:
    """Runs of another version, machine or other images than most of the others, with the reason.

    They are shown, and excluded from the means.

    Runs with one value in `folders` have the same data and seed, and must have the same images.
    """
    environments = {folder: _environment(folder) for folder in folders}
    images = {folder: _images(folder) for folder in folders}
    usual = _commonest(list(environments.values()))
    reasons: dict[Path, str] = {}
    for folder, shared in folders.items():
        why = [
            f"{key} {value}, not {expected}"
            for key, value, expected in zip(SAME, environments[folder], usual, strict=True)
            if value != expected
        ]
        alike = [images[other] for other, group in folders.items() if group == shared]
        if images[folder] is not None and images[folder] != _commonest(alike):
            why.append("other images than the other runs")
        if why:
            reasons[folder] = "; ".join(why)
    return reasons


def versions_and_machine(folder: Path) -> dict[str, dict[str, Any]]:
    """The versions and the machine of a run's folder."""
    return chosen_environment(store.read_json(folder / "environment.json"))


def chosen_environment(environment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The versions and the machine that a result records."""
    return {
        "versions": {key: environment[key] for key in VERSIONS},
        "machine": {key: environment[key] for key in MACHINE},
    }


def _environment(folder: Path) -> tuple[str, ...]:
    environment = store.read_json(folder / "environment.json")
    return tuple(str(environment.get(key)) for key in SAME)


def _images(folder: Path) -> str | None:
    """A fingerprint of the images of a run; None if its folder has none."""
    if not (folder / "data.json").is_file():
        return None
    data: dict[str, Any] = store.read_json(folder / "data.json")
    prints = [data[part] and data[part]["fingerprint"] for part in ("train", "validation")]
    return str([*prints, data["classes"], data["preprocessing"]])


def _commonest(values: Sequence[Any]) -> Any:
    """The commonest value; of equally common ones the last."""
    counts = Counter(values)
    most = max(counts.values())
    return [value for value in values if counts[value] == most][-1]


def _seconds(timing: Path, steps: float) -> float:
    """The seconds that so many steps of training took on average, without evaluation and saving."""
    lines = [json.loads(line) for line in store.read_bytes(timing).splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    count = sum(line["steps"] for line in epochs)
    return sum(line["seconds"] for line in epochs) / count * steps if count else 0.0
