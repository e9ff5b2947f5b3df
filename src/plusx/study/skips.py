"""Merges of blocks (addition, concatenation, gates, none) compared at equal cost."""

from collections.abc import Sequence
from typing import Any

from plusx.data.dataset import Dataset
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
    adapted_to,
    blocks_per_stage,
    column,
    compared,
    with_net,
)
from plusx.study.figures import error_figures
from plusx.study.trial import Trial
from plusx.zoo import cifar
from plusx.zoo.blocks import BASIC_A, BOTTLENECK_A


_DEPTH = column("depth", "Depth", kind="count")


def _trials(recipe: Recipe, table: Skips, source: Dataset) -> list[Trial]:
    blocks = blocks_per_stage(table.depth)
    # bottlenecks of about this depth: 9 n + 2 layers
    bases = {
        "basic": adapted_to(cifar.net(BASIC_A, blocks), source),
        "bottleneck": adapted_to(
            cifar.net(BOTTLENECK_A, max(1, round((table.depth - 2) / 9)), cifar.BOTTLENECK_WIDTHS),
            source,
        ),
    }
    cost = measure(bases["basic"]).multiply_adds
    return [
        Trial(
            name=f"{block} {'plain' if merge == 'none' else merge}",
            recipe=with_net(recipe, at_cost(with_merge(bases[block], merge), cost), source),
            factors={"block": block, "merge": merge},
        )
        for block in table.blocks
        for merge in table.merges
    ]


def _row(group: Group) -> dict[str, Any]:
    spec = group.recipe.net
    assert isinstance(spec, Net)
    return {"depth": measure(spec).depth, **group.costs, **group.errors}


def _finding(rows: Sequence[Row]) -> str:
    """Compare the training error of each merge with that of `+`, and bottleneck with basic."""
    additive = {row["block"]: row for row in rows if row["merge"] == "add"}
    others = [row for row in rows if row["merge"] != "add" and row["block"] in additive]
    pairs = [(row, additive[row["block"]]) for row in others]
    if {"basic", "bottleneck"} <= set(additive):
        pairs.append((additive["bottleneck"], additive["basic"]))
    errors = [tuple(row["train_error"]["seeds"] for row in pair) for pair in pairs]
    sentences = [
        compared(*pair, "train_error", gap)
        for pair, gap in zip(pairs, differences(errors), strict=True)
    ]
    return (
        f"Training error at equal multiply-adds: {'; '.join(sentences)}."
        if sentences
        else "One row."
    )


SKIPS = Experiment[Skips](
    title="Shortcuts",
    question="What does adding do that concatenating, gating or nothing does not, at equal cost?",
    trials=_trials,
    columns=lambda table, groups: [_DEPTH, PARAMETERS, MULTIPLY_ADDS, TRAIN_ERROR, ERROR],
    row=_row,
    finding=_finding,
    figures=lambda groups, rows: error_figures(
        groups, [row["name"] for row in rows if row["merge"] == "none"]
    ),
    notes=lambda recipe, table, groups: (
        "All networks have about the multiply-adds of the basic residual one: "
        "every width is scaled by one factor. With & the stages begin by halving the channels and "
        "pooling, as in DenseNet. Intervals are Welch's over seeds, all of them together 95 %. "
        "Without shortcuts dashed."
    ),
)
