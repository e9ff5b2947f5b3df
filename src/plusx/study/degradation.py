"""Degradation: do deeper networks train worse, with and without shortcuts?

He et al. 2015, sections 1 and 4.2: plain networks have a higher training error when they are
deeper, which is not overfitting, and with batch norm not for want of gradients either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.twins import without_norm
from plusx.recipe import Recipe
from plusx.recipe.studies import Degradation
from plusx.study import drawn
from plusx.study.finding import Difference, difference
from plusx.study.gradient import verdict
from plusx.study.plan import Cell, Made, Study, by_name, spec, with_net
from plusx.study.rows import spread
from plusx.study.watch import aligned, mean_ratio, over_depth, over_training


MARGIN = 0.01  # a deeper network is not worse where its error is surely less than this above


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Degradation)
    found = []
    for norm in said.norms:
        for kind in said.kinds:
            for depth in said.depths:
                name = f"{kind}{depth}"
                try:
                    net = spec(name)
                except ValueError as error:
                    raise UserError(f"[study] depths: {depth}: {error}") from None
                for seed in said.seeds:
                    chosen = name if norm == "batch" else without_norm(net)
                    found.append(
                        Cell(
                            name=name if norm == "batch" else f"{name} no norm",
                            seed=seed,
                            recipe=with_net(recipe, chosen, seed, source),
                            factors={"kind": kind, "depth": depth, "norm": norm},
                            looks=("gradients",),
                        )
                    )
    return found


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "depth", "title": "Depth", "unit": "", "kind": "count"},
        drawn.PARAMETERS,
        drawn.TRAIN_ERROR,
        drawn.ERROR,
        {"key": "ratio_start", "title": "Gradient, first / last", "unit": "at the start",
         "kind": "number"},
        {"key": "ratio_end", "title": "Gradient, first / last", "unit": "at the end",
         "kind": "number"},
    ]  # fmt: skip


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        looks = aligned([each.looks["gradients"] for each in group])
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [each.cell.seed for each in group],
                "parameters": runs[0].parameters,
                "multiply_adds": runs[0].multiply_adds,
                "train_error": spread([run.wrong for run in runs]),
                "error": spread([1 - run.scores["accuracy"] for run in runs]),
                "ratio_start": mean_ratio(looks, 0),
                "ratio_end": mean_ratio(looks, -1),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each kind of network: is the deepest worse than the shallowest in training error?"""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["norm"], row["kind"]), []).append(row)
    said = []
    for group in groups.values():
        shallow, deep = (pick(group, key=lambda row: row["depth"]) for pick in (min, max))
        if shallow is deep:
            continue
        found = difference(deep["train_error"]["seeds"], shallow["train_error"]["seeds"])
        if found is None:
            errors = [
                f"{row['name']} {drawn.percent(row['train_error'])}" for row in (shallow, deep)
            ]
            said.append(f"{' and '.join(errors)} (one seed: not judged)")
            continue
        said.append(f"{deep['name']} {_judged(found)} {shallow['name']} ({found})")
        if found.low > 0 and verdict(deep["ratio_end"]) == "steady":
            always = verdict(deep["ratio_start"]) == "steady"
            said[-1] += f" while its gradients {'are steady' if always else 'have settled'}"
    if not said:
        return "One depth: nothing to set beside it."
    return f"Training error: {'; '.join(said)}."


def _judged(found: Difference) -> str:
    if found.low > 0:
        return "is worse than"
    if found.high < 0:
        return "is better than"
    return "is not worse than" if found.high < MARGIN else "is not known to differ from"


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    bare = [name for name, group in groups.items() if group[0].cell.factors["norm"] == "none"]
    looks = {
        name: aligned([each.looks["gradients"] for each in group]) for name, group in groups.items()
    }
    logarithmic = {"title": "", "scale": "log"}
    return [
        drawn.lines_figure(
            "Training error",
            "Mean over the epoch while it trains; bands from the lowest to the highest seed.",
            drawn.errors_in_words(rows),
            drawn.training_lines(groups, bare),
        ),
        drawn.lines_figure(
            "Validation error",
            "At every evaluation.",
            drawn.errors_in_words(rows),
            drawn.validation_lines(groups, bare),
        ),
        drawn.lines_figure(
            "Gradient at every block at the start",
            "Norm of the loss gradient in the output of each block, from the first (0) to the "
            "last (1); geometric mean over the seeds.",
            "First over last block: "
            + "; ".join(f"{row['name']} {drawn.number(row['ratio_start'])}" for row in rows),
            [over_depth(name, each) for name, each in looks.items()],
            x={"title": "place of the block", "scale": "linear"},
            y=logarithmic,
        ),
        drawn.lines_figure(
            "Gradient at the first block over that at the last",
            "At the start and at every checkpoint that was kept; 1 is even.",
            "; ".join(
                f"{row['name']}: {drawn.number(row['ratio_start'])} at the start, "
                f"{drawn.number(row['ratio_end'])} at the end"
                for row in rows
            ),
            [over_training(name, each) for name, each in looks.items()],
            x={"title": "step", "scale": "linear"},
            y=logarithmic,
            level=1.0,
        ),
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            "Train error is that of the trained network on its training images. Differences have "
            "Welch's interval of 95 % over the seeds; not worse means surely less than "
            f"{100 * MARGIN:.0f} point above. Gradients are those in the outputs of the blocks, of "
            "the same 128 images each time, with the batch's own statistics."
        )
    ]


DEGRADATION = Study(
    title="Degradation",
    question="Do deeper networks train worse, and do shortcuts mend it?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
