"""The shortcuts and the orders of He et al. 2016 (tables 1 and 2), trained side by side.

What is compared with the paper is the order of the variants: their errors depend on the budget,
their order should not. Kendall's tau-b says how far two orders agree (1: wholly, 0: not at all,
-1: reversed). Where the paper says of several that they failed they are tied, and what has no such
tie comes a little less far than 1. The interval comes from drawing the mean of every variant anew.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.spec import Block
from plusx.recipe import Recipe
from plusx.recipe.studies import Ablation
from plusx.study import drawn
from plusx.study.plan import Cell, Made, Study, by_name, with_net
from plusx.study.rows import spread
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


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Ablation)
    if said.depth < 8:
        raise UserError(f"[study] depth = {said.depth}: at least 8, one basic block a stage")
    for name in said.variants:
        if name not in VARIANTS:
            near = get_close_matches(name, VARIANTS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"[study] variants: no {name!r} among {', '.join(VARIANTS)}{hint}")
    found = []
    for name in said.variants or VARIANTS:
        variant = VARIANTS[name]
        spec = net(variant.block, (said.depth - 2) // 6, first=variant.first, tail=variant.tail)
        init = recipe.init
        if variant.gate_bias is not None:
            init = replace(init, gate_bias=variant.gate_bias)
        found += [
            Cell(
                name=name,
                seed=seed,
                recipe=replace(with_net(recipe, spec, seed, source), init=init),
                factors={"table": variant.table},
            )
            for seed in said.seeds
        ]
    return found


def columns(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"key": "table", "title": "Table", "unit": "He 2016", "kind": "count"},
        {"key": "sentence", "title": "Block", "unit": "", "kind": "text"},
        {"key": "shortcut", "title": "Shortcut", "unit": "", "kind": "text"},
        drawn.TRAIN_ERROR,
        drawn.ERROR,
        {
            "key": "paper",
            "title": "Paper's test error",
            "unit": "%, 110 layers",
            "kind": "share",
            "places": 2,
        },
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        variant = VARIANTS[name]
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [run.seed for run in runs],
                "sentence": variant.block.body,
                "shortcut": variant.block.identity or "the identity",
                "train_error": spread([run.wrong for run in runs]),
                "error": spread([1 - run.scores["accuracy"] for run in runs]),
                "paper": variant.paper_error,
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kendall's tau of each table against the paper."""
    said = []
    for table, named in ((1, "shortcuts (table 1)"), (2, "orders (table 2)"), (0, "all")):
        chosen = [row for row in rows if table in (0, row["table"])]
        if table == 2:
            chosen = [*(row for row in rows if row["name"] == "original"), *chosen]
        if len(chosen) < 3:
            continue
        tau, interval = agreement(
            [row["error"]["seeds"] for row in chosen], [row["paper"] for row in chosen]
        )
        aside = (
            "one seed, no interval"
            if interval is None
            else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
        most = largest([row["paper"] for row in chosen])
        ties = f", at most {most:.2f} for the paper's ties" if most < 1 else ""
        said.append(f"{named} {tau:.2f} ({aside}{ties})")
    if not said:
        return "Fewer than three variants: there is no order to compare with the paper's."
    return f"Kendall's tau of the order against the paper's: {'; '.join(said)}."


def largest(paper: Sequence[float]) -> float:
    """The tau-b of an order that agrees wholly but has no ties, where the paper's has some."""
    pairs = [a != b for a, b in itertools.combinations(paper, 2)]
    return float((sum(pairs) / len(pairs)) ** 0.5)


def agreement(
    errors: Sequence[Sequence[float]], paper: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Kendall's tau-b between the mean errors, a list of seeds each, and the paper's errors.

    The interval of 95 % is that of the percentiles over draws of every mean from where it lies, by
    Student's t over its seeds; None where some variant has one seed. Three seeds drawn with
    replacement would vary far less than their mean does. NaN where all means or all of the paper's
    are equal.
    """
    from scipy.stats import kendalltau

    def tau(means: Sequence[float]) -> float:
        return float(kendalltau(means, paper).statistic)

    middle = tau([float(np.mean(values)) for values in errors])
    if min(map(len, errors)) < 2:
        return middle, None
    generator = np.random.default_rng(0)
    drawn_means = np.stack(
        [
            np.mean(values)
            + generator.standard_t(len(values) - 1, DRAWS)
            * (np.std(values, ddof=1) / len(values) ** 0.5)
            for values in errors
        ],
        axis=1,
    )
    taus = [tau(means.tolist()) for means in drawn_means]
    low, high = np.nanpercentile(taus, (2.5, 97.5))
    return middle, (float(low), float(high))


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    return [
        {
            "kind": "dots",
            "title": f"Validation error, {title}",
            "caption": "Every seed, and the mean as a line; the paper's order from top to bottom.",
            "alternative": drawn.errors_in_words([row for row in rows if row["table"] == table]),
            "x": {"title": "validation error", "scale": "share"},
            "groups": [
                {
                    "name": row["name"],
                    "values": row["error"]["seeds"],
                    "mean": row["error"]["mean"],
                    "interval": None,
                }
                for row in sorted(rows, key=lambda row: row["paper"])
                if row["table"] == table or row["name"] == "original"
            ],
        }
        for table, title in ((1, "what the shortcut says"), (2, "where norm and act stand"))
        if any(row["table"] == table for row in rows)
    ] + [
        drawn.lines_figure(
            "Training error",
            "Mean over the epoch while it trains.",
            drawn.errors_in_words(rows),
            drawn.training_lines(groups),
        )
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            "The paper's errors are of 110 layers on CIFAR-10 after 64,000 steps; where it says "
            "that training failed, 20 % stands, its bound. Gates begin at the paper's biases "
            "(-6 for the exclusive gate, 0 and -6 for the shortcut's)."
        )
    ]


ABLATION = Study(
    title="Shortcuts and orders of He et al. 2016",
    question="Is the identity the best shortcut, and full pre-activation the best order?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
