"""What the merge does, at equal cost: added, concatenated, gated and no shortcuts side by side."""

from collections.abc import Sequence
from typing import Any

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Net
from plusx.grammar.twins import at_cost, with_merge
from plusx.recipe import Recipe
from plusx.recipe.studies import Skips
from plusx.statistics import differences
from plusx.study.experiment import (
    ERROR,
    MULTIPLY_ADDS,
    PARAMETERS,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    compared,
    fitted,
    with_net,
)
from plusx.study.figures import error_figures
from plusx.study.trial import Trial
from plusx.zoo.blocks import BASIC_A, BOTTLENECK_A
from plusx.zoo.cifar import BOTTLENECK_WIDTHS, WIDTHS, net


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table = recipe.study
    assert isinstance(table, Skips)
    if table.depth < 8:
        raise UserError(f"[study] depth = {table.depth}: at least 8, one basic block a stage")
    basic = fitted(net(BASIC_A, (table.depth - 2) // 6, WIDTHS), source)
    # of about this depth: 9 n + 2 layers
    bottlenecks = max(1, round((table.depth - 2) / 9))
    bottleneck = fitted(net(BOTTLENECK_A, bottlenecks, BOTTLENECK_WIDTHS), source)
    cost = measure(basic).multiply_adds
    trials = []
    for block in table.blocks:
        for merge in table.merges:
            base = basic if block == "basic" else bottleneck
            spec = at_cost(with_merge(base, merge), cost)
            trials += [
                Trial(
                    name=f"{block} {'plain' if merge == 'none' else merge}",
                    seed=seed,
                    recipe=with_net(recipe, spec, seed, source),
                    factors={"block": block, "merge": merge},
                )
                for seed in table.seeds
            ]
    return trials


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    depth = column("depth", "Depth", kind="count")
    return [depth, PARAMETERS, MULTIPLY_ADDS, TRAIN_ERROR, ERROR]


def _row(group: Group) -> dict[str, Any]:
    spec = group.recipe.net
    assert isinstance(spec, Net)
    return {"depth": measure(spec).depth, **group.costs, **group.errors}


def _finding(rows: Sequence[Row]) -> str:
    """Each merge against `+` of the same block, and bottleneck against basic, in training error."""
    added = {row["block"]: row for row in rows if row["merge"] == "add"}
    others = [row for row in rows if row["merge"] != "add" and row["block"] in added]
    pairs = [(row, added[row["block"]]) for row in others]
    if {"basic", "bottleneck"} <= set(added):
        pairs.append((added["bottleneck"], added["basic"]))
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    parts = [
        compared(*pair, "train_error", gap)
        for pair, gap in zip(pairs, differences(errors), strict=True)
    ]
    return f"Training error at equal multiply-adds: {'; '.join(parts)}." if parts else "One row."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    return error_figures(groups, rows, [row["name"] for row in rows if row["merge"] == "none"])


def _notes(recipe: Recipe) -> str:
    return (
        "All networks have the multiply-adds of the basic residual one, as near as widths come: "
        "every width is scaled by one factor. With & the stages begin by halving the channels and "
        "pooling, as in DenseNet. Intervals are Welch's over seeds, all of them together 95 %. "
        "Without shortcuts dashed."
    )


SKIPS = Experiment(
    title="Shortcuts",
    question="What does adding do that concatenating, gating or nothing does not, at equal cost?",
    trials=_trials,
    columns=_columns,
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
