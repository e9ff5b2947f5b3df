"""The shortcuts and layer orders of He et al. 2016 (Identity Mappings, tables 1 and 2).

The order of the variants is compared with the paper's, because errors depend on the budget.
Kendall's tau-b measures the agreement (1: same order, 0: unrelated, -1: reversed). Variants that
failed in the paper are tied, and an order without these ties reaches a little less than 1. The
interval comes from resampling the mean of every variant.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from plusx.data.dataset import Dataset
from plusx.errors import UserError, did_you_mean
from plusx.grammar.spec import Block
from plusx.recipe import Recipe
from plusx.recipe.studies import Ablation
from plusx.report.figures import dots_figure, lines_figure
from plusx.statistics import difference
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    blocks_per_stage,
    column,
    with_net,
)
from plusx.study.figures import training_lines
from plusx.study.trial import Trial
from plusx.zoo import cifar
from plusx.zoo.blocks import BASIC_A, FIRST_PREACT_A, ORDERS, PREACT_A, SHORTCUTS


DRAWS = 1000  # samples of the means, for the interval of Kendall's tau


class Variant(NamedTuple):
    """A row of the paper: its block, the initial bias of its gates, and the paper's test error."""

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
    "preact": Variant(2, PREACT_A, 0.0637, first=FIRST_PREACT_A, tail="norm act pool"),
}


def _trials(recipe: Recipe, table: Ablation, source: Dataset) -> list[Trial]:
    blocks = blocks_per_stage(table.depth)
    for name in table.variants:
        if name not in VARIANTS:
            raise UserError(
                f"[study] variants: no {name!r} among {', '.join(VARIANTS)}"
                + did_you_mean(name, VARIANTS)
            )
    trials = []
    for name in table.variants or VARIANTS:
        variant = VARIANTS[name]
        net = cifar.net(variant.block, blocks, first=variant.first, tail=variant.tail)
        init = recipe.init
        if variant.gate_bias is not None:
            init = replace(init, gate_bias=variant.gate_bias)
        trials.append(
            Trial(
                name=name,
                recipe=replace(with_net(recipe, net, source), init=init),
                factors={"table": variant.table},
            )
        )
    return trials


def _row(group: Group) -> dict[str, Any]:
    variant = VARIANTS[group.name]
    return {
        "sentence": variant.block.body,
        "shortcut": variant.block.identity or "the identity",
        **group.errors,
        "paper": variant.paper_error,
    }


def _finding(rows: Sequence[Row]) -> str:
    """Return Kendall's tau between our order and the paper's, for each table."""
    taus = []
    for table, title in ((1, "shortcuts (table 1)"), (2, "orders (table 2)"), (0, "all")):
        selected = [row for row in rows if table in (0, row["table"])]
        if table == 2:
            selected = [*(row for row in rows if row["name"] == "original"), *selected]
        if len(selected) < 3:
            continue
        papers = [row["paper"] for row in selected]
        tau, interval = agreement([row["error"]["seeds"] for row in selected], papers)
        interval_text = (
            "no interval"
            if interval is None
            else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
        max_tau = max_tau_with_ties(papers)
        ties = f", at most {max_tau:.2f} for the paper's ties" if max_tau < 1 else ""
        taus.append(f"{title} {tau:.2f} ({interval_text}{ties})")
    if not taus:
        return "Fewer than three variants: there is no order to compare with the paper's."
    order = f"Kendall's tau of the order against the paper's: {'; '.join(taus)}."
    return " ".join([order, *_against_best(rows)])


def _against_best(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for every variant that errs less here than the paper's best one: whether
    the seeds show it, and the smallest difference that they could have shown."""
    best = min(rows, key=lambda row: float(row["paper"]))
    sentences = []
    for row in rows:
        if row["error"]["mean"] >= best["error"]["mean"]:
            continue
        gap = difference(row["error"]["seeds"], best["error"]["seeds"])
        if gap is None:
            continue
        shown = 100 * (gap.high - gap.low) / 2
        settled = "" if gap.high < 0 else ": INCONCLUSIVE"
        sentences.append(
            f"{row['name']} against {best['name']}, the paper's best: {gap}{settled}; these seeds "
            f"show differences from {shown:.1f} points on, the paper prints "
            f"{100 * (row['paper'] - best['paper']):+.2f}."
        )
    return sentences


def max_tau_with_ties(paper: Sequence[float]) -> float:
    """Return the highest possible tau-b between these errors and an order without ties."""
    differ = [a != b for a, b in itertools.combinations(paper, 2)]
    return float((sum(differ) / len(differ)) ** 0.5)


def agreement(
    errors: Sequence[Sequence[float]], paper: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Return Kendall's tau-b between the mean errors and the paper's, with its 95 % interval.

    `errors` has one list of seeds per variant. The interval is that of the percentiles over samples
    of every mean from Student's t; bootstrapping three seeds would vary far less than their mean
    does. It is None if a variant has one seed, or all samples agree. The tau is NaN if all means or
    all errors of the paper are equal.
    """
    from scipy.stats import kendalltau

    def tau(means: Sequence[float]) -> float:
        return float(kendalltau(means, paper).statistic)

    point_tau = tau([float(np.mean(values)) for values in errors])
    if min(map(len, errors)) < 2:
        return point_tau, None
    rng = np.random.default_rng(0)
    sampled_means = np.stack(
        [
            np.mean(values)
            + rng.standard_t(len(values) - 1, DRAWS) * (np.std(values, ddof=1) / len(values) ** 0.5)
            for values in errors
        ],
        axis=1,
    )
    taus = [tau(means.tolist()) for means in sampled_means]
    low, high = map(float, np.nanpercentile(taus, (2.5, 97.5)))
    return point_tau, (low, high) if low < high else None


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
                    {"title": "validation error", "scale": "share"},
                    {row["name"]: row["error"] for row in chosen},
                )
            )
    caption = "Mean over the epoch while it trains."
    return [*figures, lines_figure("Training error", caption, training_lines(groups))]


ABLATION = Experiment[Ablation](
    title="Shortcuts and orders of He et al. 2016",
    question="Is the identity the best shortcut, and full pre-activation the best order?",
    trials=_trials,
    columns=lambda table, groups: [
        column("table", "Table", "He 2016", "count"),
        column("sentence", "Block", kind="text"),
        column("shortcut", "Shortcut", kind="text"),
        TRAIN_ERROR,
        ERROR,
        {**column("paper", "Paper's test error", "%, 110 layers", "share"), "places": 2},
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=lambda recipe, table, groups: (
        "The paper's errors are of 110 layers on CIFAR-10 after 64,000 steps; where training "
        "failed in the paper, its error is given as 20 %, the paper's bound. Gates start at the "
        "paper's biases (-6 for the exclusive gate, 0 and -6 for the shortcut's)."
    ),
)
