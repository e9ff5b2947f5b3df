"""Degradation: deeper plain networks train worse (He et al. 2015, sections 1 and 4.2).

Their higher training error is not overfitting and, with batch norm, not due to vanishing gradients.
"""

from collections.abc import Sequence
from typing import Any

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.twins import without_norm
from plusx.recipe import Recipe
from plusx.recipe.studies import Degradation
from plusx.statistics import differences
from plusx.study.experiment import (
    ERROR,
    PARAMETERS,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    compared,
    listed,
    percent,
    spec,
    with_net,
)
from plusx.study.figures import error_figures
from plusx.study.gradients import (
    aligned,
    depth_figure,
    ratios_over_training,
    training_figure,
    verdict,
)
from plusx.study.trial import Measurement, Trial


MARGIN = 0.01  # a deeper network is "not worse" if its error is higher by less than this
UNTRAINED = 0.95  # fraction of the error of chance above which a network has learned nothing
_DEPTH = column("depth", "Depth", kind="count")


def _trials(recipe: Recipe, table: Degradation, source: Dataset) -> list[Trial]:
    trials = []
    chance = 1 - 1 / len(source.classes)  # the error of guessing
    for norm in table.norms:
        for kind in table.kinds:
            for depth in table.depths:
                name = f"{kind}{depth}"
                try:
                    net = spec(name)
                except ValueError as error:
                    raise UserError(f"[study] depths: {depth}: {error}") from None
                chosen = name if norm == "batch" else without_norm(net)
                trials.append(
                    Trial(
                        name=name if norm == "batch" else f"{name} no norm",
                        recipe=with_net(recipe, chosen, source),
                        factors={"kind": kind, "depth": depth, "norm": norm, "chance": chance},
                        measurements=(Measurement("gradients"),),
                    )
                )
    return trials


def _row(group: Group) -> dict[str, Any]:
    ratios = ratios_over_training(aligned(group.measured("gradients")))
    return {**group.costs, **group.errors, "ratio_start": ratios[0], "ratio_end": ratios[-1]}


def _finding(rows: Sequence[Row]) -> str:
    """Compare the training error of the deepest and the shallowest network of each kind."""
    by_kind: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_kind.setdefault((row["norm"], row["kind"]), []).append(row)
    pairs = [
        (max(group, key=lambda row: row["depth"]), min(group, key=lambda row: row["depth"]))
        for group in by_kind.values()
    ]
    pairs = [(deep, shallow) for deep, shallow in pairs if deep is not shallow]
    if not pairs:
        return _finding_at_one_depth(rows)
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = []
    for (deep, shallow), gap in zip(pairs, differences(errors), strict=True):
        text = compared(deep, shallow, "train_error", gap)
        lowest = min(row["train_error"]["mean"] for row in (deep, shallow))
        chance = deep.get("chance", 1.0)
        if lowest > UNTRAINED * chance:
            sentences.append(
                f"{deep['name']} and {shallow['name']} learned nothing "
                f"({deep['train_error']['mean']:.1%} and {shallow['train_error']['mean']:.1%}, "
                f"chance {chance:.1%})"
            )
            continue
        if gap is not None and gap.low <= 0 <= gap.high < MARGIN:
            text = text.replace("is not known to differ from", "is not worse than")
        if gap is not None and gap.low > 0 and verdict(deep["ratio_end"]) == "steady":
            always = verdict(deep["ratio_start"]) == "steady"
            text += f" while its gradients {'are steady' if always else 'have settled'}"
        sentences.append(text)
    return f"Training error: {'; '.join(sentences)}."


def _finding_at_one_depth(rows: Sequence[Row]) -> str:
    """Compare the training error of every kind with that of the plain networks."""
    plain = {row["norm"]: row for row in rows if row["kind"] == "plain"}
    pairs = [(r, plain[r["norm"]]) for r in rows if r["kind"] != "plain" and r["norm"] in plain]
    if not pairs:
        values = listed([f"{row['name']} {percent(row['train_error'])}" for row in rows])
        return f"Training error at one depth: {values}."
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = [
        compared(row, other, "train_error", gap)
        for (row, other), gap in zip(pairs, differences(errors), strict=True)
    ]
    return f"Training error: {'; '.join(sentences)}."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    without_norms = [group.name for group in groups if group.factors["norm"] == "none"]
    results = {group.name: aligned(group.measured("gradients")) for group in groups}
    return [*error_figures(groups, without_norms), depth_figure(results), training_figure(results)]


DEGRADATION = Experiment[Degradation](
    title="Degradation",
    question="Do deeper networks train worse, and do shortcuts prevent it?",
    trials=_trials,
    columns=lambda table, groups: [
        _DEPTH,
        PARAMETERS,
        TRAIN_ERROR,
        ERROR,
        column("ratio_start", "Gradient, first / last", "at the start"),
        column("ratio_end", "Gradient, first / last", "at the end"),
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "Train error is that of the trained network on its training images. Differences have "
        "Welch's interval over the seeds, all of them together 95 %; not worse means surely less "
        f"than {100 * MARGIN:.0f} point above. Gradients are those in the outputs of the blocks, "
        "of the same 128 images each time, with the batch's own statistics."
    ),
)
