"""Finished runs: their metrics and training curves, and which of them may be averaged."""

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
# keys of environment.json that must be equal in runs that are averaged
SAME = ("plusx", "torch", "processor", "device_name")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its network, seed, metrics and training curve."""

    name: str
    seed: int
    parameters: int
    multiply_adds: int
    data: str
    metrics: Mapping[str, float]  # the most important first
    count: int  # evaluated samples
    noun: str  # what a sample is called
    averaging: str  # of metrics over classes; empty if there are none
    train_error: float | None  # on the training images, after training; None: not defined
    points: tuple[EpochPoint, ...]
    seconds_per_epoch: float

    @property
    def wrong(self) -> float:
        """The training error of a classifier."""
        assert self.train_error is not None
        return self.train_error


def read_finished(folder: Path, trial: Trial) -> FinishedRun:
    """Read the finished run of a trial, with its metrics on the trial's split."""
    result = store.read_json(folder / "result.json")
    on_validation = trial.split == "validation"
    metrics = (
        result["validation"] if on_validation else store.read_json(folder / f"{trial.split}.json")
    )
    keys = result.get("metrics", OF_CLASSES)
    return FinishedRun(
        name=trial.name,
        seed=trial.seed or 0,
        parameters=result["parameters"],
        multiply_adds=result["multiply_adds"],
        data=result["data"],
        # one of no sample is undefined, such as false acceptances without phrases to reject
        metrics={key: metrics[key] for key in keys if metrics[key] is not None},
        count=metrics["count"],
        noun=result.get("noun", "image"),
        averaging=metrics.get("averaging", ""),
        train_error=result["train_error"],
        points=read_history(folder / "log.jsonl", keys[0]),
        seconds_per_epoch=_seconds(folder / "timing.jsonl", result["steps"] / result["epochs"]),
    )


def summarise(name: str, runs: Sequence[FinishedRun], threshold: float) -> dict[str, Any]:
    """Return a row of a comparison: counts, and mean and spread of metrics over the runs.

    `std` is the sample standard deviation (n - 1), None for one seed. `train_error` is the error of
    the trained network on the training images. `epochs_to_threshold` has for each seed the first
    epoch whose evaluation reached the threshold, or None; its mean is over the seeds that reached
    it.
    """
    foremost = next(iter(runs[0].metrics))
    reached = [epochs_to(run.points, threshold, foremost) for run in runs]
    train_errors = [run.train_error for run in runs if run.train_error is not None]
    epochs = [float(epoch) for epoch in reached if epoch is not None]
    return {
        "name": name,
        "parameters": runs[0].parameters,
        "multiply_adds": runs[0].multiply_adds,
        "seeds": [run.seed for run in runs],
        **{key: spread([run.metrics[key] for run in runs]) for key in runs[0].metrics},
        **({"train_error": spread(train_errors)} if len(train_errors) == len(runs) else {}),
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
    """Return the first epoch whose metric is at least as good as the threshold."""
    goal = better(key, threshold)
    return next(
        (p.epoch for p in points if p.score is not None and better(key, p.score) >= goal), None
    )


def incomparable(folders: Mapping[Path, str]) -> dict[Path, str]:
    """Return the runs with another version, machine or other data than most, with the reason.

    Such runs are shown and excluded from the means. Runs with the same value in `folders` have the
    same data and seed, and must have the same samples.
    """
    environments = {folder: _environment(folder) for folder in folders}
    data = {folder: _data(folder) for folder in folders}
    usual = _most_common(list(environments.values()))
    reasons: dict[Path, str] = {}
    for folder, group in folders.items():
        differences = [
            f"{key} {value}, not {expected}"
            for key, value, expected in zip(SAME, environments[folder], usual, strict=True)
            if value != expected
        ]
        group_data = [data[other] for other, other_group in folders.items() if other_group == group]
        if data[folder] is not None and data[folder] != _most_common(group_data):
            differences.append("other data than the other runs")
        if differences:
            reasons[folder] = "; ".join(differences)
    return reasons


def versions_and_machine(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the versions and the machine recorded in a run's folder."""
    return recorded_environment(store.read_json(folder / "environment.json"))


def recorded_environment(environment: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the versions and the machine as a result records them."""
    return {
        "versions": {key: environment[key] for key in VERSIONS},
        "machine": {key: environment[key] for key in MACHINE},
    }


def _environment(folder: Path) -> tuple[str, ...]:
    environment = store.read_json(folder / "environment.json")
    return tuple(str(environment.get(key)) for key in SAME)


def _data(folder: Path) -> str | None:
    """Return a fingerprint of the data of a run, or None."""
    if not (folder / "data.json").is_file():
        return None
    data: dict[str, Any] = store.read_json(folder / "data.json")
    fingerprints = [data[split] and data[split]["fingerprint"] for split in ("train", "validation")]
    return str([*fingerprints, data["classes"], data["preprocessing"]])


def _most_common(values: Sequence[Any]) -> Any:
    """Return the most common value, the last of equally common ones."""
    counts = Counter(values)
    highest = max(counts.values())
    return [value for value in values if counts[value] == highest][-1]


def _seconds(timing: Path, steps: float) -> float:
    """Return the mean training time of `steps` steps, without evaluation and saving."""
    lines = [json.loads(line) for line in store.read_bytes(timing).splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    count = sum(line["steps"] for line in epochs)
    return sum(line["seconds"] for line in epochs) / count * steps if count else 0.0
