"""The gap between training and validation, over depth, remedies and amounts of data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.twins import with_dropout
from plusx.recipe import KnownData, OwnData, Recipe
from plusx.recipe.studies import Generalisation
from plusx.report.figures import line, lines_figure
from plusx.statistics import difference, differences, spread
from plusx.study.experiment import (
    ERROR,
    TRAIN_ERROR,
    Experiment,
    Group,
    Row,
    column,
    spec,
    with_net,
)
from plusx.study.trial import Trial


DROPOUT = 0.3  # before the last convolution of a block (Zagoruyko and Komodakis 2016)
DROP_PATH = 0.5  # the last block's rate (Huang et al. 2016)
_DEPTH = column("depth", "Depth", kind="count")


def _trials(recipe: Recipe, table: Generalisation, source: Dataset) -> list[Trial]:
    remedy_keys = {
        "augmentation": ("data.augment", recipe.data.augment),
        "weight-decay": ("optim.weight_decay", recipe.optim.weight_decay),
    }
    for remedy, (key, value) in remedy_keys.items():
        if remedy in table.remedies and not value:
            raise UserError(f"[study] remedies: {remedy} is {key}, which is empty: nothing to try")
    for share in table.shares:
        if round(share * len(source)) < len(source.classes):
            raise UserError(
                f"[study] shares: {share:g} of {len(source):,} images is less than one of each of "
                f"{len(source.classes)} classes"
            )
    return [
        Trial(
            name=f"resnet{depth} {remedy} {100 * share:g} %",
            recipe=_with_remedy(recipe, depth, remedy, share, source),
            factors={"depth": depth, "remedy": remedy, "share": share},
        )
        for depth in table.depths
        for share in table.shares
        for remedy in table.remedies
    ]


def _with_remedy(recipe: Recipe, depth: int, remedy: str, share: float, source: Dataset) -> Recipe:
    """Return the recipe with this remedy and no other."""
    net = spec(f"resnet{depth}")
    if remedy == "dropout":
        net = with_dropout(net, DROPOUT)
    if remedy == "stochastic-depth":
        net = replace(net, drop_path=DROP_PATH)
    assert isinstance(recipe.data, KnownData | OwnData)
    augment = recipe.data.augment if remedy == "augmentation" else ""
    data = replace(recipe.data, augment=augment, train=round(share * len(source)))
    decay = recipe.optim.weight_decay if remedy == "weight-decay" else 0.0
    bare = replace(recipe, data=data, optim=replace(recipe.optim, weight_decay=decay))
    return with_net(bare, net, source)


def _row(group: Group) -> dict[str, Any]:
    gaps = [1 - run.metrics["accuracy"] - run.wrong for run in group.runs]
    images = getattr(group.recipe.data, "train", None)
    return {"images": images, **group.errors, "gap": spread(gaps)}


def _finding(rows: Sequence[Row]) -> str:
    """Name, for each fraction of the data, the remedies that lower the validation error, and how
    depth changes the gap. A remedy helps if its interval is below 0."""
    pairs = [
        (row, bare)
        for row in rows
        if (bare := _without_remedy(rows, row["depth"], row["share"])) is not None
        and row is not bare
    ]
    helpful: dict[float, list[str]] = {row["share"]: [] for row in rows}
    errors = [tuple(row["error"]["seeds"] for row in pair) for pair in pairs]
    for (row, _), gap in zip(pairs, differences(errors), strict=True):
        if gap is not None and gap.high < 0:
            helpful[row["share"]].append(f"{row['remedy']} ({row['depth']} layers, {gap})")
    parts = []
    for share, remedies in helpful.items():
        effect = (
            f"less error by {', '.join(remedies)}" if remedies else "no remedy is shown to help"
        )
        parts.append(f"with {100 * share:g} % of the images {effect}{_depth_effect(rows, share)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _depth_effect(rows: Sequence[Row], share: float) -> str:
    depths = sorted({row["depth"] for row in rows})
    shallow, deep = (_without_remedy(rows, depth, share) for depth in (depths[0], depths[-1]))
    if shallow is None or deep is None or shallow is deep:
        return ""
    gap = difference(deep["gap"]["seeds"], shallow["gap"]["seeds"], bounds=(-2.0, 2.0))
    if gap is None:
        return ""
    return f"; from {depths[0]} to {depths[-1]} layers the gap changes by {gap}"


def _without_remedy(rows: Sequence[Row], depth: int, share: float) -> Row | None:
    key = ("none", depth, share)
    return next((r for r in rows if (r["remedy"], r["depth"], r["share"]) == key), None)


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    figures = []
    for depth in dict.fromkeys(row["depth"] for row in rows):
        of_depth = [row for row in rows if row["depth"] == depth]
        for title, key in (("Validation error", "error"), ("Gap", "gap")):
            figures.append(
                lines_figure(
                    f"{title}, {depth} layers",
                    "Over the number of training images; bands from the lowest to the highest "
                    "seed.",
                    [
                        _over_images(remedy, key, of_depth)
                        for remedy in dict.fromkeys(row["remedy"] for row in rows)
                    ],
                    x={"title": "training images", "scale": "log"},
                )
            )
    return figures


def _over_images(remedy: str, key: str, rows: Sequence[Row]) -> dict[str, Any]:
    chosen = sorted((row for row in rows if row["remedy"] == remedy), key=lambda row: row["images"])
    return line(
        remedy,
        [row["images"] for row in chosen],
        [row[key]["mean"] for row in chosen],
        low=[min(row[key]["seeds"]) for row in chosen],
        high=[max(row[key]["seeds"]) for row in chosen],
        dashed=remedy == "none",
    )


def _notes(recipe: Recipe, table: Generalisation, groups: Sequence[Group]) -> str:
    length = (
        "All runs make the same number of updates, whatever the number of images."
        if recipe.steps
        else "All runs make the same number of epochs, so those with fewer images make fewer "
        "updates: what few images cost and what few updates cost is not separated."
    )
    compared = len(table.depths) * len(table.shares) * len(set(table.remedies) - {"none"})
    return (
        f"{length} The gap is the validation error less the training error of the trained network. "
        f"Dropout ({DROPOUT}) is placed before the last convolution of a block; stochastic depth "
        f"drops the last block with {DROP_PATH}; weight decay is {recipe.optim.weight_decay:g}; "
        f"augmentation is {recipe.data.augment!r}; every row has only its own.\n"
        "Remedies are compared with none of them by Welch's interval over the seeds; the "
        f"{compared} comparisons hold together with 95 %."
    )


GENERALISATION = Experiment[Generalisation](
    title="Generalisation",
    question="How far is validation behind training, and what helps with little data?",
    trials=_trials,
    columns=lambda table, groups: [
        _DEPTH,
        column("remedy", "Against it", kind="text"),
        column("images", "Images", kind="count"),
        TRAIN_ERROR,
        ERROR,
        column("gap", "Gap", "points", "share"),
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
