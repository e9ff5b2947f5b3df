"""The comparison of networks: each is trained with every seed.

The finding is one sentence. A difference is claimed only if the intervals of two networks do not
overlap. All networks are evaluated on the same samples, so for a comparison these intervals are
conservative. If one network is compared with several, the intervals are corrected for it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from plusx import statistics
from plusx.data.dataset import Dataset
from plusx.errors import UserError, counted
from plusx.grammar.spec import Net
from plusx.grammar.toml import read_net
from plusx.grammar.validate import validate
from plusx.recipe import Compare, NetByName, Recipe
from plusx.report import values
from plusx.report.charts import family
from plusx.report.figures import LOG, SHARE, dots_figure, lines_figure
from plusx.report.history import EpochPoint
from plusx.report.metrics import METRICS, PERCENT, better, capital
from plusx.run import build
from plusx.run.task_factory import TASKS
from plusx.statistics import Interval
from plusx.study.experiment import (
    MULTIPLY_ADDS,
    PARAMETERS,
    TRAIN_ERROR,
    Experiment,
    Group,
    adapted_to,
    column,
    listed,
)
from plusx.study.figures import over_epochs
from plusx.study.results import summarise
from plusx.study.trial import Trial
from plusx.zoo import find


Row = Mapping[str, Any]


def metric_interval(
    key: str, values: Sequence[float], count: int, *, comparisons: int = 1
) -> Interval | None:
    """Return the interval of a metric's mean over the seeds; for a fraction of samples it includes
    the uncertainty due to the number of samples."""
    if METRICS[key].of_samples:
        return statistics.share_interval(values, count, comparisons=comparisons)
    return statistics.mean_interval(
        values, bounds=(0.0, METRICS[key].maximum), comparisons=comparisons
    )


def comparison_finding(rows: Sequence[Row]) -> str:
    """Return one sentence about the rows: on a plain network and its residual twin if both are
    there, else on the best network and those that are worse."""
    return _Finding(rows).text()


class _Finding:
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.count, self.key = rows, rows[0]["count"], rows[0]["metric"]
        self.title = f"{rows[0]['split']} {METRICS[self.key].title}"

    def text(self) -> str:
        by_name = {row["name"]: row for row in self.rows}
        twins = sorted(
            (int(match[1]), name, f"resnet{match[1]}")
            for name in by_name
            if (match := re.fullmatch(r"plain(\d+)", name)) and f"resnet{match[1]}" in by_name
        )
        if min(len(row[self.key]["seeds"]) for row in self.rows) < 2:
            values_by_name = listed([f"{row['name']} {self._percent(row)}" for row in self.rows])
            unknown = "how far seeds differ is not known"
            return f"One seed, {self.title}: {values_by_name}; {unknown}."
        if not twins:
            return self._ranking()
        depth, plain, residual = twins[-1]
        text, better = self._about_twins(by_name[plain], by_name[residual])
        if not better:
            return f"{text}."
        shallow = twins[0][0]
        if shallow == depth or not self._worse_in_training(
            by_name[plain], by_name[f"plain{shallow}"]
        ):
            return f"{text}: at this depth the skips make the difference."
        if self._worse(by_name[residual], by_name[f"resnet{shallow}"]):
            return f"{text}: depth hurts without skips, and less with them."
        return f"{text}: depth hurts without skips."

    def _about_twins(self, plain: Row, residual: Row) -> tuple[str, bool]:
        """Return the sentence on a plain network and its twin, and whether the twin is better."""
        low, high = (f"{row['name']} reaches {self._percent(row)}" for row in (plain, residual))
        if self._worse(residual, plain):
            return f"{high} {self.title} where {low}: here the skips did not help", False
        if self._worse(plain, residual):
            return f"{low} {self.title} where {high}", True
        both = f"{self._with_percent(plain)} and {self._with_percent(residual)}"
        gap = self._gap(residual, plain)
        return f"{both} do not differ in {self.title} by more than chance allows{gap}", False

    def _gap(self, row: Row, other: Row) -> str:
        """Return how much larger a metric in per cent is, with Welch's interval, in brackets."""
        largest = METRICS[self.key].maximum
        pair = row[self.key]["seeds"], other[self.key]["seeds"]
        gap = statistics.difference(*pair, bounds=(-largest, largest))
        if gap is None or METRICS[self.key].unit != PERCENT:
            return ""
        return f" ({row['name']} minus {other['name']}: {gap})"

    def _worse_in_training(self, deep: Row, shallow: Row) -> bool:
        """Whether the deeper network has the higher training error too, so that it does not
        overfit."""
        if "train_error" not in deep:
            return False
        harder = deep["train_error"]["mean"] > shallow["train_error"]["mean"]
        return harder and self._worse(deep, shallow)

    def _ranking(self) -> str:
        key = self.key
        best, *others = sorted(self.rows, key=lambda row: -better(key, row[key]["mean"]))
        is_worse_than_best = [self._worse(row, best, comparisons=len(others)) for row in others]
        worse = [
            self._with_percent(row) for row, is_worse in zip(others, is_worse_than_best) if is_worse
        ]
        similar = [
            self._with_percent(row)
            for row, is_worse in zip(others, is_worse_than_best)
            if not is_worse
        ]
        clauses = [f"{best['name']} reaches {self._percent(best)} {self.title}"]
        if worse:
            clauses.append(f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} behind")
        if similar:
            verb = "does" if len(similar) == 1 else "do"
            clauses.append(
                f"{listed(similar)} {verb} not differ from it by more than chance allows"
            )
        return "; ".join(clauses) + "."

    def _worse(self, row: Row, other: Row, comparisons: int = 1) -> bool:
        """Whether a network is known to be worse than another."""
        first, second = (
            metric_interval(self.key, r[self.key]["seeds"], self.count, comparisons=comparisons)
            for r in (row, other)
        )
        if METRICS[self.key].lower_is_better:
            first, second = second, first
        return first is not None and second is not None and first.below(second)

    def _percent(self, row: Row) -> str:
        """Return a mean with its unit; per cent have a decimal from 90 %."""
        metric, mean = METRICS[self.key], row[self.key]["mean"]
        return metric.text(mean, decimals=0 if metric.unit == PERCENT and mean < 0.9 else None)

    def _with_percent(self, row: Row) -> str:
        return f"{row['name']} ({self._percent(row)})"


def comparison_trials(recipe: Recipe, table: Compare) -> list[Trial]:
    """Return a trial for each network: a name of the zoo, or a .toml file with a spec, whose trial
    has the name of the file. Raises UserError if a network is unknown, a file is invalid, or two
    have the same name."""
    assert isinstance(recipe.net, NetByName)
    nets: dict[str, NetByName | Net] = {}
    source = None
    for network in table.networks:
        path = Path(network)
        name = path.stem if path.suffix == ".toml" else network
        if name in nets:
            raise UserError(f"[compare] networks: two have the name {name}; rename a file")
        if path.suffix == ".toml":
            if source is None:
                source = build.open_split(recipe, "train")
            nets[name] = _net_of_file(recipe, path, source)
        else:
            find(network)  # raises UserError for an unknown network
            nets[name] = replace(recipe.net, base=network)
    return [
        Trial(name=name, recipe=replace(recipe, net=net), factors={"threshold": table.threshold})
        for name, net in nets.items()
    ]


def _net_of_file(recipe: Recipe, path: Path, source: Dataset) -> Net:
    """Return the spec of a file for the inputs and classes of these data, with the fields that the
    recipe's [net] changes."""
    net = read_net(path)
    assert isinstance(recipe.net, NetByName)
    for key in build.TRAINED:
        if getattr(recipe.net, key) != getattr(NetByName(base=""), key):
            raise UserError(f"[net] {key}: for networks by name only, not for {path}")
    outputs = TASKS[recipe.task.kind].outputs(recipe, source)
    changes = {"num_classes": outputs, **build.spec_changes(recipe.net)}
    try:
        net = replace(adapted_to(net, source), **changes)
        validate(net)
    except UserError as error:
        raise UserError(f"{path} on {source.name}: {error}") from error
    return net


def _columns(table: Compare, groups: Sequence[Group]) -> list[dict[str, Any]]:
    run = groups[0].runs[0]
    shares = [
        column(key, capital(METRICS[key].title), METRICS[key].unit, METRICS[key].kind)
        for key in run.metrics
    ]
    threshold = _threshold_text(next(iter(run.metrics)), table.threshold)
    return [
        PARAMETERS,
        MULTIPLY_ADDS,
        *shares,
        *([TRAIN_ERROR] if run.train_error is not None else []),
        {**column("seconds_per_epoch", "Seconds", "an epoch"), "places": 2},
        {
            **column("epochs_to_threshold", "Epochs", f"to {threshold}"),
            "absent": "not reached",
        },
    ]


def _threshold(key: str, fraction: float) -> float:
    """Return the threshold of a metric: a fraction of its largest value."""
    return fraction * METRICS[key].maximum if isfinite(METRICS[key].maximum) else fraction


def _threshold_text(key: str, fraction: float) -> str:
    unit, value = METRICS[key].unit, _threshold(key, fraction)
    return f"{values.percent(value) if unit == PERCENT else f'{value:g}'} {unit}"


def _row(group: Group) -> dict[str, Any]:
    run = group.runs[0]
    first = next(iter(run.metrics))
    threshold = _threshold(first, float(group.factors["threshold"]))
    row = summarise(group.name, group.runs, threshold)
    interval = metric_interval(first, row[first]["seeds"], run.count)
    return {
        **row,
        "split": group.results[0].trial.split,
        "count": run.count,
        "metric": first,
        "interval": None if interval is None else list(interval),
    }


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    first = rows[0]["metric"]
    fraction = float(groups[0].factors["threshold"])
    threshold, scale = _threshold(first, fraction), METRICS[first].axis
    mean = " Line: mean over the seeds; band: lowest to highest." if rows[0]["seeds"][1:] else ""
    dotted = f" Dotted: the threshold of {_threshold_text(first, fraction)}."
    curves: list[tuple[str, str, Any, float | None, Callable[[EpochPoint], float | None]]] = [
        (f"Validation {METRICS[first].title}", f"At every evaluation.{mean}{dotted}", scale,
         threshold, lambda point: point.score),
        ("Training error", f"Share of wrong predictions, measured while the epoch trains.{mean}",
         SHARE, None, lambda point: point.train_error),
        ("Training loss", f"Logarithmic scale.{mean}", LOG, None, lambda point: point.train_loss),
    ]  # fmt: skip
    figures = []
    for title, caption, y, level, value in curves:
        lines = [
            over_epochs(group, value, dashed=family(group.name) == "plain") for group in groups
        ]
        lines = [line for line in lines if line["x"]]
        if lines:
            figures.append(lines_figure(title, caption, lines, y=y, level=level))
    interval_source = (
        f"seeds and {groups[0].runs[0].noun}s" if METRICS[first].of_samples else "seeds"
    )
    bars = (
        f" Bar: 95 % interval over {interval_source}."
        if any(row["interval"] for row in rows)
        else ""
    )
    dots = dots_figure(
        f"{capital(rows[0]['split'])} {METRICS[first].title} at the end, every seed",
        f"Dot: one seed; line: their mean.{bars}",
        {"title": METRICS[first].title, "scale": scale["scale"]},
        {row["name"]: {**row[first], "interval": row["interval"]} for row in rows},
    )
    return [*figures, dots]


def _notes(recipe: Recipe, table: Compare, groups: Sequence[Group]) -> str:
    run, split = groups[0].runs[0], groups[0].results[0].trial.split
    unused = "; the test set was not used" if split == "validation" else ""
    averaging = f"Precision, recall and F1 are {run.averaging} averages over the classes. "
    train_error = "Train error is that of the trained network on its training set. "
    return (
        f"Evaluated on the {split} split, {counted(run.count, run.noun)}{unused}. "
        + (averaging if run.averaging else "")
        + (train_error if run.train_error is not None else "")
        + "Seconds are training time only; runs in parallel share the machine."
    )


def _extra(table: Compare, groups: Sequence[Group]) -> dict[str, Any]:
    run = groups[0].runs[0]
    return {
        "count": run.count,
        "averaging": run.averaging,
        "metrics": list(run.metrics),
        "noun": run.noun,
        "threshold": table.threshold,
        "epochs": max(
            (run.points[-1].epoch for group in groups for run in group.runs if run.points),
            default=0,
        ),
    }


COMPARISON = Experiment[Compare](
    title="Comparison",
    question="Which network is better, and by more than chance allows?",
    trials=lambda recipe, table, source: comparison_trials(recipe, table),
    columns=_columns,
    row=_row,
    finding=comparison_finding,
    figures=_figures,
    notes=_notes,
    extra=_extra,
)
