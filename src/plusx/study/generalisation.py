"""The gap between training and validation, over depth, what is done against it, and the data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.grammar.twins import with_dropout
from plusx.recipe import KnownData, OwnData, Recipe
from plusx.recipe.studies import Generalisation
from plusx.study import drawn
from plusx.study.finding import difference
from plusx.study.plan import Cell, Made, Study, by_name, spec, with_net
from plusx.study.rows import spread


# Rates of two remedies; how images are augmented and weights decay is the recipe's own.
DROPOUT = 0.3  # before the last convolution of a block (Zagoruyko and Komodakis 2016)
DROP_PATH = 0.5  # the last block's rate (Huang et al. 2016)


def cells(recipe: Recipe, source: Source) -> list[Cell]:
    said = recipe.study
    assert isinstance(said, Generalisation)
    own = {"augmentation": recipe.data.augment, "weight-decay": recipe.optim.weight_decay}
    for remedy, value in own.items():
        if remedy in said.remedies and not value:
            key = "data.augment" if remedy == "augmentation" else "optim.weight_decay"
            raise UserError(f"[study] remedies: {remedy} is {key}, which says nothing to try")
    for share in said.shares:
        if round(share * len(source)) < len(source.classes):
            raise UserError(
                f"[study] shares: {share:g} of {len(source):,} images is less than one of each of "
                f"{len(source.classes)} classes"
            )
    return [
        Cell(
            name=f"resnet{depth} {remedy} {100 * share:g} %",
            seed=seed,
            recipe=_recipe(recipe, depth, remedy, share, seed, source),
            factors={"depth": depth, "remedy": remedy, "share": share},
        )
        for depth in said.depths
        for share in said.shares
        for remedy in said.remedies
        for seed in said.seeds
    ]


def _recipe(
    recipe: Recipe, depth: int, remedy: str, share: float, seed: int, source: Source
) -> Recipe:
    """The recipe with this remedy and no other."""
    net: Net = spec(f"resnet{depth}")
    if remedy == "dropout":
        net = with_dropout(net, DROPOUT)
    if remedy == "stochastic-depth":
        net = replace(net, drop_path=DROP_PATH)
    assert isinstance(recipe.data, KnownData | OwnData)
    data = replace(
        recipe.data,
        augment=recipe.data.augment if remedy == "augmentation" else "",
        train=round(share * len(source)),
    )
    decay = recipe.optim.weight_decay if remedy == "weight-decay" else 0.0
    bare = replace(recipe, data=data, optim=replace(recipe.optim, weight_decay=decay))
    return with_net(bare, net, seed, source)


def columns(recipe: Recipe) -> list[dict[str, str]]:
    return [
        {"key": "depth", "title": "Depth", "unit": "", "kind": "count"},
        {"key": "remedy", "title": "Against it", "unit": "", "kind": "text"},
        {"key": "images", "title": "Images", "unit": "", "kind": "count"},
        drawn.TRAIN_ERROR,
        drawn.ERROR,
        {"key": "gap", "title": "Gap", "unit": "points", "kind": "share"},
    ]


def rows(made: Sequence[Made]) -> list[dict[str, Any]]:
    found = []
    for name, group in by_name(made).items():
        runs = [each.run for each in group if each.run is not None]
        train = [run.wrong for run in runs]
        held = [1 - run.scores["accuracy"] for run in runs]
        found.append(
            {
                "name": name,
                **group[0].cell.factors,
                "seeds": [run.seed for run in runs],
                "images": getattr(group[0].cell.recipe.data, "train", None),
                "train_error": spread(train),
                "error": spread(held),
                "gap": spread([ours - theirs for ours, theirs in zip(held, train, strict=True)]),
            }
        )
    return found


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each share of the data: what lowers the validation error, at any depth; and how depth
    changes the gap. A remedy helps where Welch's interval of 95 % lies below 0."""
    said = []
    for share in dict.fromkeys(row["share"] for row in rows):
        of_share = [row for row in rows if row["share"] == share]
        helps = [
            f"{row['remedy']} ({row['depth']} layers, {found})"
            for row in of_share
            if (bare := _bare(of_share, row["depth"])) is not None
            and row is not bare
            and (found := difference(row["error"]["seeds"], bare["error"]["seeds"])) is not None
            and found.high < 0
        ]
        heard = f"less error by {', '.join(helps)}" if helps else "no remedy is shown to help"
        said.append(f"with {100 * share:g} % of the images {heard}{_deeper(of_share)}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def _deeper(rows: Sequence[Mapping[str, Any]]) -> str:
    depths = sorted({row["depth"] for row in rows})
    shallow, deep = (_bare(rows, depth) for depth in (depths[0], depths[-1]))
    if shallow is None or deep is None or shallow is deep:
        return ""
    found = difference(deep["gap"]["seeds"], shallow["gap"]["seeds"])
    return (
        ""
        if found is None
        else f"; from {depths[0]} to {depths[-1]} layers the gap changes by {found}"
    )


def _bare(rows: Sequence[Mapping[str, Any]], depth: int) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["remedy"], row["depth"]) == ("none", depth)), None)


def figures(made: Sequence[Made], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        drawn.lines_figure(
            f"{title}, {depth} layers",
            "Over the number of training images; bands from the lowest to the highest seed.",
            "; ".join(
                f"{row['name']}: {100 * row[key]['mean']:.1f}"
                for row in rows
                if row["depth"] == depth
            ),
            [
                _over_images(remedy, key, [r for r in rows if r["depth"] == depth])
                for remedy in dict.fromkeys(row["remedy"] for row in rows)
            ],
            x={"title": "training images", "scale": "log"},
        )
        for depth in dict.fromkeys(row["depth"] for row in rows)
        for title, key in (("Validation error", "error"), ("Gap", "gap"))
    ]


def _over_images(remedy: str, key: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    points = sorted((row["images"], row[key]) for row in rows if row["remedy"] == remedy)
    return {
        "name": remedy,
        "x": [images for images, _ in points],
        "mean": [value["mean"] for _, value in points],
        "low": [min(value["seeds"]) for _, value in points],
        "high": [max(value["seeds"]) for _, value in points],
        "dashed": remedy == "none",
    }


def notes(recipe: Recipe) -> list[str]:
    said = recipe.study
    assert isinstance(said, Generalisation)
    length = (
        "All runs make the same number of updates, whatever the number of images."
        if recipe.steps
        else "All runs make the same number of epochs, so those with fewer images make fewer "
        "updates: what few images cost and what few updates cost is not told apart."
    )
    compared = len(said.depths) * len(said.shares) * len(set(said.remedies) - {"none"})
    return [
        (
            f"{length} The gap is the validation error less the training error of the trained "
            f"network. Dropout ({DROPOUT}) stands before the last convolution of a block; "
            f"stochastic depth drops the last block with {DROP_PATH}; weight decay is "
            f"{recipe.optim.weight_decay:g}; augmentation is {recipe.data.augment!r}; none "
            "of them stands in the others' rows."
        ),
        (
            "Remedies are compared with none of them by Welch's interval over the seeds, each of "
            f"the {compared} comparisons at 95 % for itself: if no remedy did anything, one in 40 "
            "would be said to help by chance."
        ),
    ]


GENERALISATION = Study(
    title="Generalisation",
    question="How far is validation behind training, and what helps with little data?",
    cells=cells,
    columns=columns,
    rows=rows,
    finding=finding,
    figures=figures,
    notes=notes,
)
