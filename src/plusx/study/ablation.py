"""The shortcuts and the orders of He et al. 2016 (tables 1 and 2), trained side by side.

What is compared with the paper is the order of the variants: their errors depend on the budget,
their order should not. Kendall's tau-b says how far two orders agree (1: fully, 0: not at all,
-1: reversed). Where several failed in the paper they are tied, and an order without such ties
reaches a little less than 1. The interval comes from drawing the mean of every variant again.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.spec import Block
from plusx.recipe import Recipe
from plusx.recipe.studies import Ablation
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    with_net,
)
from plusx.study.figures import dots_figure, errors_in_words, lines_figure, training_lines
from plusx.study.trial import Trial
from plusx.zoo.blocks import BASIC_A, FIRST_PREACT_A, ORDERS, PREACT_A, SHORTCUTS
from plusx.zoo.cifar import net


DRAWS = 1000  # of the means, for the interval


class Variant(NamedTuple):
    """A row of the paper: its block, where its gates begin, and the paper's test error."""

    table: int
    block: Block
    paper_error: float
    gate_bias: float | None = None
    first: Block | None = None
    tail: str = "pool"


VARIANTS: dict[str, Variant] = {
    "original": Variant(1, BASIC_A, 0.0661),
    "constant": Variant(1, SHORTCUTS["constant"], 0.1235),
    "constant-shortcut": Variant(1, SHORTCUTS["constant_shortcut"], 0.2000),
    "exclusive-gate": Variant(1, SHORTCUTS["exclusive_gate"], 0.0870, -6.0),
    "shortcut-gate-0": Variant(1, SHORTCUTS["shortcut_gate"], 0.1286, 0.0),
    "shortcut-gate-6": Variant(1, SHORTCUTS["shortcut_gate"], 0.0691, -6.0),
    "conv-shortcut": Variant(1, SHORTCUTS["conv_shortcut"], 0.1222),
    "dropout-shortcut": Variant(1, SHORTCUTS["dropout_shortcut"], 0.2000),
    "norm-after": Variant(2, ORDERS["norm_after"], 0.0817),
    "act-before": Variant(2, ORDERS["act_before"], 0.0784),
    "act-only": Variant(2, ORDERS["act_only"], 0.0671, tail="act pool"),
    "preact": Variant(
        2,
        PREACT_A,
        0.0637,
        first=FIRST_PREACT_A,
        tail="norm act pool",
    ),
}


def _trials(recipe: Recipe, source: Dataset) -> list[Trial]:
    table = recipe.study
    assert isinstance(table, Ablation)
    if table.depth < 8:
        raise UserError(f"[study] depth = {table.depth}: at least 8, one basic block a stage")
    for name in table.variants:
        if name not in VARIANTS:
            near = get_close_matches(name, VARIANTS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"[study] variants: no {name!r} among {', '.join(VARIANTS)}{hint}")
    trials = []
    for name in table.variants or VARIANTS:
        variant = VARIANTS[name]
        blocks = (table.depth - 2) // 6
        spec = net(variant.block, blocks, first=variant.first, tail=variant.tail)
        init = recipe.init
        if variant.gate_bias is not None:
            init = replace(init, gate_bias=variant.gate_bias)
        trials += [
            Trial(
                name=name,
                seed=seed,
                recipe=replace(with_net(recipe, spec, seed, source), init=init),
                factors={"table": variant.table},
            )
            for seed in table.seeds
        ]
    return trials


def _columns(recipe: Recipe) -> list[dict[str, Any]]:
    paper = column("paper", "Paper's test error", "%, 110 layers", "share")
    return [
        column("table", "Table", "He 2016", "count"),
        column("sentence", "Block", kind="text"),
        column("shortcut", "Shortcut", kind="text"),
        TRAIN_ERROR,
        ERROR,
        {**paper, "places": 2},
    ]


def _row(group: Group) -> dict[str, Any]:
    variant = VARIANTS[group.name]
    return {
        "sentence": variant.block.body,
        "shortcut": variant.block.identity or "the identity",
        **group.errors,
        "paper": variant.paper_error,
    }


def _finding(rows: Sequence[Row]) -> str:
    """Kendall's tau of each table against the paper."""
    parts = []
    for table, named in ((1, "shortcuts (table 1)"), (2, "orders (table 2)"), (0, "all")):
        chosen = [row for row in rows if table in (0, row["table"])]
        if table == 2:
            chosen = [*(row for row in rows if row["name"] == "original"), *chosen]
        if len(chosen) < 3:
            continue
        papers = [row["paper"] for row in chosen]
        tau, interval = agreement([row["error"]["seeds"] for row in chosen], papers)
        sure = (
            "no interval"
            if interval is None
            else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
        most = largest(papers)
        ties = f", at most {most:.2f} for the paper's ties" if most < 1 else ""
        parts.append(f"{named} {tau:.2f} ({sure}{ties})")
    if not parts:
        return "Fewer than three variants: there is no order to compare with the paper's."
    return f"Kendall's tau of the order against the paper's: {'; '.join(parts)}."


def largest(paper: Sequence[float]) -> float:
    """The tau-b of an order that agrees wholly but has no ties, where the paper's has some."""
    pairs = [a != b for a, b in itertools.combinations(paper, 2)]
    return float((sum(pairs) / len(pairs)) ** 0.5)


def agreement(
    errors: Sequence[Sequence[float]], paper: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Kendall's tau-b between the mean errors, a list of seeds each, and the paper's errors.

    The interval of 95 % has the percentiles over draws of every mean, by Student's t over its
    seeds; None where some variant has one seed, or where no draw differs. Three seeds drawn with
    replacement would vary far less than their mean does. NaN where all means or all of the paper's
    errors are equal.
    """
    from scipy.stats import kendalltau

    def tau(means: Sequence[float]) -> float:
        return float(kendalltau(means, paper).statistic)

    middle = tau([float(np.mean(values)) for values in errors])
    if min(map(len, errors)) < 2:
        return middle, None
    generator = np.random.default_rng(0)
    means_drawn = np.stack(
        [
            np.mean(values)
            + generator.standard_t(len(values) - 1, DRAWS)
            * (np.std(values, ddof=1) / len(values) ** 0.5)
            for values in errors
        ],
        axis=1,
    )
    taus = [tau(means.tolist()) for means in means_drawn]
    low, high = map(float, np.nanpercentile(taus, (2.5, 97.5)))
    return middle, (low, high) if low < high else None


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    ordered = sorted(rows, key=lambda row: row["paper"])
    figures = []
    for table, title in ((1, "kinds of shortcut"), (2, "orders of norm and activation")):
        chosen = [row for row in ordered if row["table"] == table or row["name"] == "original"]
        if any(row["table"] == table for row in rows):
            figures.append(
                dots_figure(
                    f"Validation error, {title}",
                    "Every seed, and the mean as a line; the paper's order from top to bottom.",
                    errors_in_words(chosen),
                    {"title": "validation error", "scale": "share"},
                    {row["name"]: row["error"] for row in chosen},
                )
            )
    caption = "Mean over the epoch while it trains."
    words = errors_in_words(rows)
    return [*figures, lines_figure("Training error", caption, words, training_lines(groups))]


def _notes(recipe: Recipe) -> str:
    return (
        "The paper's errors are of 110 layers on CIFAR-10 after 64,000 steps; where training "
        "failed in the paper, 20 % stands, its bound. Gates begin at the paper's biases (-6 for "
        "the exclusive gate, 0 and -6 for the shortcut's)."
    )


ABLATION = Experiment(
    title="Shortcuts and orders of He et al. 2016",
    question="Is the identity the best shortcut, and full pre-activation the best order?",
    trials=_trials,
    columns=_columns,
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
