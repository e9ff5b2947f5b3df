"""Degradation: do deeper networks train worse, with and without shortcuts?

He et al. 2015, sections 1 and 4.2: plain networks have a higher training error when they are
deeper, which is not overfitting, and with batch norm not for want of gradients either.
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
    spec,
    with_net,
)
from plusx.study.figures import error_figures, number
from plusx.study.gradients import (
    aligned,
    depth_figure,
    ratios_over_training,
    training_figure,
    verdict,
)
from plusx.study.trial import Measurement, Trial


MARGIN = 0.01  # a deeper network is not worse where its error is surely less than this above


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table = recipe.study
    assert isinstance(table, Degradation)
    trials = []
    for norm in table.norms:
        for kind in table.kinds:
            for depth in table.depths:
                name = f"{kind}{depth}"
                try:
                    net = spec(name)
                except ValueError as error:
                    raise UserError(f"[study] depths: {depth}: {error}") from None
                chosen = name if norm == "batch" else without_norm(net)
                trials += [
                    Trial(
                        name=name if norm == "batch" else f"{name} no norm",
                        seed=seed,
                        recipe=with_net(recipe, chosen, seed, source),
                        factors={"kind": kind, "depth": depth, "norm": norm},
                        measurements=(Measurement("gradients"),),
                    )
                    for seed in table.seeds
                ]
    return trials


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        column("depth", "Depth", kind="count"),
        PARAMETERS,
        TRAIN_ERROR,
        ERROR,
        column("ratio_start", "Gradient, first / last", "at the start"),
        column("ratio_end", "Gradient, first / last", "at the end"),
    ]


def _row(group: Group) -> dict[str, Any]:
    ratios = ratios_over_training(aligned(group.measured("gradients")))
    return {**group.costs, **group.errors, "ratio_start": ratios[0], "ratio_end": ratios[-1]}


def _finding(rows: Sequence[Row]) -> str:
    """For each kind of network: is the deepest worse than the shallowest in training error?"""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["norm"], row["kind"]), []).append(row)
    pairs = [
        (max(group, key=lambda row: row["depth"]), min(group, key=lambda row: row["depth"]))
        for group in groups.values()
    ]
    pairs = [(deep, shallow) for deep, shallow in pairs if deep is not shallow]
    if not pairs:
        return "One depth: there is nothing to compare."
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    parts = []
    for (deep, shallow), gap in zip(pairs, differences(errors), strict=True):
        text = compared(deep, shallow, "train_error", gap)
        if gap is not None and gap.low <= 0 <= gap.high < MARGIN:
            text = text.replace("is not known to differ from", "is not worse than")
        if gap is not None and gap.low > 0 and verdict(deep["ratio_end"]) == "steady":
            always = verdict(deep["ratio_start"]) == "steady"
            text += f" while its gradients {'are steady' if always else 'have settled'}"
        parts.append(text)
    return f"Training error: {'; '.join(parts)}."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    bare = [group.name for group in groups if group.factors["norm"] == "none"]
    answers = {group.name: aligned(group.measured("gradients")) for group in groups}
    start = "; ".join(f"{row['name']} {number(row['ratio_start'])}" for row in rows)
    both = "; ".join(
        f"{row['name']}: {number(row['ratio_start'])} at the start, "
        f"{number(row['ratio_end'])} at the end"
        for row in rows
    )
    return [
        *error_figures(groups, rows, bare),
        depth_figure(answers, f"First block over last: {start}"),
        training_figure(answers, both),
    ]


def _notes(recipe: Recipe) -> str:
    return (
        "Train error is that of the trained network on its training images. Differences have "
        "Welch's interval over the seeds, all of them together 95 %; not worse means surely less "
        f"than {100 * MARGIN:.0f} point above. Gradients are those in the outputs of the blocks, "
        "of the same 128 images each time, with the batch's own statistics."
    )


DEGRADATION = Experiment(
    title="Degradation",
    question="Do deeper networks train worse, and do shortcuts prevent it?",
    trials=_trials,
    columns=_columns,
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
