"""Attention in residual networks at equal cost: none, gates of channels, attention over positions.

se, eca and cbam: a gate at the end of every branch (Hu et al. 2017, Wang et al. 2019, Woo et al.
    2018).
nonlocal: a non-local block after the last stage (Wang et al. 2017).
mhsa: self-attention instead of the second convolution of each block of the last stage, as in
    BoTNet (Srinivas et al. 2021).
hybrid: a transformer instead of the last stage, after residual stages.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import lcm
from typing import Any

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.arithmetic import measure
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import parse
from plusx.recipe import Recipe
from plusx.recipe.studies import Attention
from plusx.report.figures import SHARE, dots_figure
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
    sentences_against,
    with_differences,
    with_net,
)
from plusx.study.figures import error_figures
from plusx.study.trial import Trial
from plusx.zoo import cifar
from plusx.zoo.blocks import BASIC_A, NONLOCAL, attended


_GATES = {"se": "se/4", "eca": "eca", "cbam": "cbam/4"}
_HEADS = 4
_SELF_ATTENTION = Block(body=f"conv3s norm act attn{_HEADS} norm + act", shortcut="pad")
_TRANSFORMER = (
    Block(body=f"norm attn{_HEADS}b conv1b +"),
    Block(body="norm conv1*2b act conv1b +"),
)
_ENTER = "conv3*2s2 norm act pos"  # of the transformer: fewer positions, and where they are
_EXTRA = (-2, -1, 0, 1, 2)  # steps of the widths around the scaled ones


def network(kind: str, depth: int) -> Net:
    """Return the network of CIFAR of this depth (6 n + 2) with this kind of attention."""
    block = attended(BASIC_A, _GATES[kind]) if kind in _GATES else BASIC_A
    base = cifar.net(block, blocks_per_stage(depth))
    *others, last = base.stages
    if kind == "nonlocal":
        return replace(base, stages=(*base.stages, Stage(block=NONLOCAL, depth=1, width=64)))
    if kind == "mhsa":
        return replace(base, stages=(*others, replace(last, block=_SELF_ATTENTION)))
    if kind == "hybrid":
        stage = Stage(block=_TRANSFORMER, depth=last.depth, width=last.width, enter=_ENTER)
        return replace(base, stages=(*others, stage), tail="norm act pool")
    return base


def at_equal_cost(net: Net, multiply_adds: int) -> Net:
    """Return the network with other widths, as near to this number of MACs as they allow.

    All widths are scaled by one factor, and then by up to two steps each. A step is one channel,
    or as many as there are heads."""
    steps = [_step(net, index) for index in range(len(net.stages))]

    def scaled(factor: float, extra: Sequence[int]) -> Net:
        stages: list[Stage] = []
        for stage, step, more in zip(net.stages, steps, extra, strict=True):
            width = max(1, round(stage.width * factor / step) + more) * step
            if stages and not stage.enter and stage.stride == 1:  # a non-local block
                width = stages[-1].width
            if stage.enter == _ENTER:
                width = 2 * stages[-1].width
            stages.append(replace(stage, width=width))
        return replace(net, stages=tuple(stages), stem_width=stages[0].width)

    def distance(candidate: Net) -> int:
        return abs(measure(candidate).multiply_adds - multiply_adds)

    zeros = (0,) * len(steps)
    factors = (0.5 + 0.02 * index for index in range(51))
    factor = min(factors, key=lambda value: distance(scaled(value, zeros)))
    nearby = (scaled(factor, (*extra, *zeros[3:])) for extra in product(_EXTRA, repeat=3))
    return min(nearby, key=distance)


def _step(net: Net, index: int) -> int:
    """Return what the width of a stage is a multiple of: the heads, and half of them before the
    transformer, which begins with twice the channels."""
    if index + 1 < len(net.stages) and net.stages[index + 1].enter == _ENTER:
        return _HEADS // 2
    words = [word for block in net.stages[index].blocks for word in parse(block.body).words]
    return lcm(*(int(word.value or 1) for word in words if word.kind == "attn"))


def _trials(recipe: Recipe, table: Attention, source: Dataset) -> list[Trial]:
    if table.depth < 8:
        raise UserError(f"[study] depth = {table.depth}: at least 8, for one block per stage")
    nets = {kind: adapted_to(network(kind, table.depth), source) for kind in ("none", *table.kinds)}
    cost = measure(nets["none"]).multiply_adds
    return [
        Trial(
            name=kind,
            recipe=with_net(recipe, net if kind == "none" else at_equal_cost(net, cost), source),
            factors={"kind": kind},
        )
        for kind, net in nets.items()
    ]


def _finding(rows: Sequence[Row]) -> str:
    sentences = sentences_against(rows, "none", "error")
    if not sentences:
        return "One row: there is nothing to compare."
    return f"Validation error at equal MACs: {sentences}."


def _row(group: Group) -> dict[str, Any]:
    return {**group.costs, **group.errors}


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    dots = dots_figure(
        "Validation error at the end, every seed",
        "Dot: one seed; line: their mean.",
        {"title": "validation error", "scale": SHARE["scale"]},
        {row["name"]: row["error"] for row in rows},
    )
    return [*error_figures(groups, []), dots]


ATTENTION = Experiment[Attention](
    title="Attention",
    question="Which attention helps a residual network, at equal cost?",
    trials=_trials,
    columns=lambda table, groups: [
        PARAMETERS,
        MULTIPLY_ADDS,
        TRAIN_ERROR,
        ERROR,
        column("gap", "Difference to none", "95 % interval", "text"),
    ],
    row=_row,
    complete=lambda rows: with_differences(rows, "none", "error"),
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "All networks have the MACs of the one without attention to within 2 %, by other widths. "
        "Intervals are Welch's over seeds, all of them together 95 % (Holm)."
    ),
)
