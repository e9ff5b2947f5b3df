"""Lesion study: the error without some of the blocks (Veit et al. 2016, sections 4.1 and 4.2).

Without a block a residual network loses some of its many short paths; a plain network loses its
only path.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.nn.block import ResidualBlock
from plusx.recipe import NetByName, Recipe
from plusx.recipe.studies import Lesion as LesionTable
from plusx.report.figures import band, lines_figure
from plusx.run import build
from plusx.run.folder import record_test_use
from plusx.statistics import spread
from plusx.study.blocks import BlockPosition, block_positions, preserved, shortcut_only
from plusx.study.experiment import (
    Experiment,
    Group,
    Row,
    column,
    error_rate,
    listed,
    open_trial,
    percent,
    some_batches,
    spec,
    with_net,
)
from plusx.study.figures import relative
from plusx.study.trial import Measurement, Trial


Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Lesion:
    """The error without one block; None, with the reason, if the block cannot be deleted."""

    name: str
    error: float | None
    why: str = ""


@dataclass(frozen=True)
class Deletions:
    """The errors without `count` blocks at once, one for each random choice of blocks."""

    count: int
    errors: tuple[float, ...]


class ShortcutOnly(nn.Module):
    """The replacement of a deleted block: its shortcut."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        return shortcut_only(self.block, x)


def lesions(net: nn.Module, evaluate: Evaluate) -> list[Lesion]:
    """Return the error, as `evaluate` measures it, with each block deleted in turn.

    A block with a shortcut is replaced by its shortcut, a projection included; with `&` the
    features of the branch are zero. A plain block is removed, which is only possible if it does not
    change the shape. `evaluate` is called with the network in evaluation mode and without
    gradients. Raises UserError if the network is not made of blocks.
    """
    results = []
    for position in block_positions(net):
        why = undeletable(position)
        if why:
            results.append(Lesion(position.name, None, why))
        else:
            with without(net, [position.name]):
                results.append(Lesion(position.name, evaluate(net)))
    return results


def deletions(
    net: nn.Module, evaluate: Evaluate, counts: Iterable[int], *, draws: int = 10, seed: int = 0
) -> list[Deletions]:
    """Return the errors without several random blocks at once (figure 5 a), `draws` of them per
    count. Raises UserError if a count exceeds the number of blocks that can be deleted."""
    deletable = [position.name for position in block_positions(net) if not undeletable(position)]
    generator = torch.Generator().manual_seed(seed)
    results = []
    for count in counts:
        if not 0 <= count <= len(deletable):
            raise UserError(
                f"{count} blocks cannot be deleted at once: it must be 0 to {len(deletable)}"
            )
        errors = []
        for _ in range(draws):
            chosen = torch.randperm(len(deletable), generator=generator)[:count].tolist()
            with without(net, [deletable[i] for i in chosen]):
                errors.append(evaluate(net))
        results.append(Deletions(count, tuple(errors)))
    return results


def undeletable(position: BlockPosition) -> str:
    """Return why a block cannot be deleted; an empty string if it can."""
    if position.has_shortcut or not position.changes_shape:
        return ""
    into, out = position.shape_in, position.block.shape_out
    return (
        f"without it {into.channels} channels of {_size(into.size)} would reach layers for "
        f"{out.channels} of {_size(out.size)}, and it has no shortcut"
    )


@contextmanager
def without(net: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Delete these blocks inside the context, in evaluation mode and without gradients. Raises
    UserError if a block does not exist or cannot be deleted."""
    positions = {position.name: position for position in block_positions(net)}
    for name in names:
        if name not in positions:
            raise UserError(f"there is no block {name}; there are {', '.join(positions)}")
        if why := undeletable(positions[name]):
            raise UserError(f"{name} cannot be deleted: {why}")
    chosen = [positions[name] for name in dict.fromkeys(names)]
    with preserved(net), torch.no_grad():
        net.eval()
        try:
            for position in chosen:
                replacement = (
                    ShortcutOnly(position.block) if position.has_shortcut else nn.Identity()
                )
                position.holder[position.index] = replacement.eval()
            yield
        finally:
            for position in chosen:
                position.holder[position.index] = position.block


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def measure_lesion(
    recipe: Recipe, folder: Path, split: str, images: int, draws: int, *counts: int
) -> dict[str, Any]:
    """Measure the error of the whole network, without each block and without several, as JSON."""
    net, sets = open_trial(recipe, folder)
    if split == "test":
        test_set = build.open_split(recipe, "test")
        source = build.Sets(test_set, None).with_preprocessing(sets.train.modality.to_dict()).train
    elif sets.validation is None:
        raise UserError("[data] validation = 0: there is no validation set to evaluate on")
    else:
        source = sets.validation
    batches = some_batches(source, images)

    def evaluate(changed: nn.Module) -> float:
        return error_rate(changed, batches)

    with without(net, []):
        error = evaluate(net)
    single = lesions(net, evaluate)
    num_deletable = sum(not undeletable(position) for position in block_positions(net))
    possible = [count for count in counts if count <= num_deletable]
    together = deletions(net, evaluate, possible, draws=draws, seed=recipe.seed)
    count = sum(map(len, batches))
    if split == "test":
        use = {"data": source.name, "count": count, "accuracy": 1 - error, "for": "lesion"}
        record_test_use(folder, use)
    return {
        "error": error,
        "images": count,
        "blocks": list(map(asdict, single)),
        "several": [{**asdict(deleted), "errors": list(deleted.errors)} for deleted in together],
    }


def _trials(recipe: Recipe, table: LesionTable, source: Dataset) -> list[Trial]:
    net = recipe.net
    if source.multilabel:
        raise UserError(
            f"{source.name} has several labels per image; the study needs one label per image"
        )
    measurement = Measurement("lesion", (table.split, table.images, table.draws, *table.counts))
    if isinstance(net, Net):
        networks: tuple[Net | str, ...] = table.networks or (net,)
        weighted = []
    else:
        spec(net.base)  # UserError for an external module
        networks = table.networks or (() if net.weights else (net.base,))
        weighted = [recipe] if net.weights else []
        recipe = replace(recipe, net=replace(net, weights=""))
    trials = [
        Trial(
            name=f"{getattr(pretrained.net, 'base', '')}, given weights",
            seed=pretrained.seed,
            recipe=pretrained,
            factors={"network": getattr(pretrained.net, "base", "")},
            train=False,
            measurements=(measurement,),
        )
        for pretrained in weighted
    ]
    for network in networks:
        name = network if isinstance(network, str) else "network"
        if isinstance(network, str):
            spec(network)
        trials.append(
            Trial(
                name=name,
                recipe=with_net(recipe, network, source),
                factors={"network": name},
                measurements=(measurement,),
            )
        )
    return trials


def _row(group: Group) -> dict[str, Any]:
    results = group.measured("lesion")
    without_one = [
        [block["error"] for block in result["blocks"] if block["error"] is not None]
        for result in results
    ]
    blocks = results[0]["blocks"]
    return {
        "error": spread([result["error"] for result in results]),
        "median": spread([float(median(errors)) if errors else 0.0 for errors in without_one]),
        "worst": spread([max(errors, default=0.0) for errors in without_one]),
        "deleted": len(without_one[0]),
        "kept": len(blocks) - len(without_one[0]),
        "images": results[0]["images"],
        "blocks": [
            {
                "name": block["name"],
                "errors": [result["blocks"][index]["error"] for result in results],
                "why": block["why"],
            }
            for index, block in enumerate(blocks)
        ],
    }


def _finding(rows: Sequence[Row]) -> str:
    errors = [
        f"{row['name']} errs in {percent(row['error'])}; without one of its {row['deleted']} "
        f"blocks in {percent(row['median'])} at the median and {percent(row['worst'])} at worst"
        for row in rows
        if row["deleted"]
    ]
    return ". ".join(errors) + "." if errors else "No block could be deleted."


def _figures(groups: Sequence[Group], rows: Sequence[Row]) -> list[dict[str, Any]]:
    results = {group.name: group.measured("lesion") for group in groups}
    undeletable_blocks = {
        row["name"]: [block["name"] for block in row["blocks"] if block["why"]] for row in rows
    }
    gaps = "; ".join(
        f"{name} without {listed(blocks)}" for name, blocks in undeletable_blocks.items() if blocks
    )
    figures = [
        lines_figure(
            "Error without one block",
            "Each block deleted alone, from the first (0) to the last (1)."
            + (f" Blocks that cannot be deleted are left out: {gaps}." if gaps else ""),
            [
                band(
                    name,
                    relative(len(seeds[0]["blocks"])),
                    [[block["error"] for block in result["blocks"]] for result in seeds],
                )
                for name, seeds in results.items()
            ],
            x={"title": "position of the deleted block", "scale": "linear"},
        )
    ]
    with_deletions = {name: seeds for name, seeds in results.items() if seeds[0]["several"]}
    if with_deletions:
        figures.append(
            lines_figure(
                "Error without several random blocks",
                "Mean over the draws and seeds, and their lowest and highest; 0 is the whole "
                "network.",
                [_deletions_line(name, seeds) for name, seeds in with_deletions.items()],
                x={"title": "blocks deleted at once", "scale": "linear"},
            )
        )
    return figures


def _deletions_line(name: str, results: Sequence[Row]) -> dict[str, Any]:
    counts = [0, *(deleted["count"] for deleted in results[0]["several"])]
    errors = [
        [result["error"], *(deleted["errors"][index] for deleted in result["several"])]
        for result in results
        for index in range(len(result["several"][0]["errors"]))
    ]
    return band(name, counts, errors)


def _notes(recipe: Recipe, table: LesionTable, groups: Sequence[Group]) -> str:
    text = (
        "A residual block loses its branch and passes its shortcut on, a projection included; a "
        "plain block is left out, which is possible only where it does not change the shape. "
        f"Errors are of at most {table.images:,} {table.split} images. Nothing is trained again."
    )
    if isinstance(recipe.net, NetByName) and recipe.net.weights and table.split == "validation":
        text += (
            "\nGiven weights may have been trained on the validation images, which are a part of "
            'the training set: split = "test" evaluates them on others.'
        )
    return text


LESION = Experiment[LesionTable](
    title="Lesions",
    question="What does a network lose with one of its blocks?",
    trials=_trials,
    columns=lambda table, groups: [
        column("error", "Error", "%", "share"),
        column("median", "Without one block, median", "%", "share"),
        column("worst", "Without one block, worst", "%", "share"),
        column("deleted", "Blocks deleted", kind="count"),
        column("kept", "Not deletable", kind="count"),
        column("images", "Images", kind="count"),
    ],
    row=_row,
    finding=_finding,
    figures=_figures,
    notes=_notes,
)
