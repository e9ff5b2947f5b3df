"""What the merge does, at equal cost: added, concatenated, gated and no shortcuts side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.grammar.twins import at_cost, with_merge
from plusx.recipe import Recipe
from plusx.recipe.studies import Skips
from plusx.study import drawn
from plusx.study.finding import difference
from plusx.study.plan import Cell, Made, Study, by_name, fitted, with_net
from plusx.study.rows import spread
from plusx.zoo.blocks import BASIC_A, BOTTLENECK_A
from plusx.zoo.cifar import BOTTLENECK_WIDTHS, WIDTHS, net


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Skips)
    if said.depth < 8:
        raise UserError(f"[study] depth = {said.depth}: at least 8, one basic block a stage")
    basic = fitted(net(BASIC_A, (said.depth - 2) // 6, WIDTHS), source)
    cost = measure(basic).multiply_adds
    found = []
    for block in said.blocks:
        base = basic if block == "basic" else fitted(_bottleneck(said.depth), source)
        for merge in said.merges:
            spec = at_cost(with_merge(base, merge), cost)
            found += [
                Cell(
                    name=f"{block} {'plain' if merge == 'none' else merge}",
                    seed=seed,
                    recipe=with_net(recipe, spec, seed, source),
                    factors={"block": block, "merge": merge},
                )
                for seed in said.seeds
            ]
    return found


def _bottleneck(depth: int) -> Net:
    """The bottleneck network of about this depth: 9 n + 2 layers."""
    return net(BOTTLENECK_A, max(1, round((depth - 2) / 9)), BOTTLENECK_WIDTHS)


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "depth", "title": "Depth", "unit": "", "kind": "count"},
        drawn.PARAMETERS,
        drawn.MULTIPLY_ADDS,
        drawn.TRAIN_ERROR,
        drawn.ERROR,
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        spec = group[0].cell.recipe.net
        assert isinstance(spec, Net)
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [run.seed for run in runs],
                "depth": measure(spec).depth,
                "parameters": runs[0].parameters,
                "multiply_adds": runs[0].multiply_adds,
                "train_error": spread([run.wrong for run in runs]),
                "error": spread([1 - run.scores["accuracy"] for run in runs]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each merge against `+` of the same block, and bottleneck against basic, in training error."""
    said = []
    for block in dict.fromkeys(row["block"] for row in rows):
        of_block = [row for row in rows if row["block"] == block]
        added = next((row for row in of_block if row["merge"] == "add"), None)
        if added is not None:
            said += [_beside(row, added) for row in of_block if row is not added]
    basic, narrow = (
        next((row for row in rows if (row["block"], row["merge"]) == (block, "add")), None)
        for block in ("basic", "bottleneck")
    )
    if basic is not None and narrow is not None:
        said.append(_beside(narrow, basic))
    return f"Training error at equal multiply-adds: {'; '.join(said)}." if said else "One row."


def _beside(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = difference(row["train_error"]["seeds"], other["train_error"]["seeds"])
    if found is None:
        errors = [f"{each['name']} {drawn.percent(each['train_error'])}" for each in (row, other)]
        return f"{' and '.join(errors)} (one seed: not judged)"
    how = "worse than" if found.low > 0 else "better than" if found.high < 0 else "not told from"
    return f"{row['name']} is {how} {other['name']} ({found})"


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = by_name(made)
    bare = [row["name"] for row in rows if row["merge"] == "none"]
    said = drawn.errors_in_words(rows)
    return [
        drawn.lines_figure(f"{what} error", caption, said, lines(groups, bare))
        for what, caption, lines in (
            (
                "Training",
                "Mean over the epoch while it trains; without shortcuts dashed.",
                drawn.training_lines,
            ),
            ("Validation", "At every evaluation.", drawn.validation_lines),
        )
    ]


def notes(recipe: Recipe) -> list[str]:
    return [
        (
            "All networks have the multiply-adds of the basic residual one, as near as widths "
            "come: every width is scaled by one factor. With & the stages begin by halving "
            "the channels and pooling, as in DenseNet. Intervals are Welch's of 95 % over seeds, "
            "each for itself: of 20 that compare like with like about one leaves out 0 by chance."
        )
    ]


SKIPS = Study(
    title="Shortcuts",
    question="What does adding do that concatenating, gating or nothing does not, at equal cost?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
