"""The gradients of a run: at its start, and at every checkpoint that it kept."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plusx import store
from plusx.data.loader import Loader
from plusx.recipe import Recipe
from plusx.run import parts
from plusx.run.questions import open_task
from plusx.study.gradient import block_gradients, gradient_ratio


IMAGES = 128  # of the training images in their order, as they are


def gradients(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Norms of the loss gradient at every block, of the same images each time, as JSON:

    `steps` (0 is the start), `blocks` (their names), `outputs` and `weights` (for each step the
    norm at each block, None where it is not finite) and `ratio` (the outputs' norm at the first
    block over that at the last, None where it cannot be said).
    """
    sets = parts.open_sets(recipe)
    recipe = parts.resolved(recipe, sets.train)
    net, preprocessing = parts.make_net(recipe)
    if preprocessing is not None:
        sets = sets.prepared_as(preprocessing)
    parts.begin_from(recipe, net, sets.train)
    task = open_task(recipe.task, net, sets.train.classes)
    few = sets.train.subset(np.arange(min(IMAGES, len(sets.train))).tolist())
    with Loader(few, split="validation", batch_size=IMAGES) as loader:
        batch = next(iter(loader.epoch(0)))
    found: dict[str, list[Any]] = {"steps": [], "outputs": [], "weights": [], "ratio": []}

    def look(step: int) -> None:
        blocks = block_gradients(net, batch.inputs, batch.known_targets)
        found["blocks"] = [block.name for block in blocks]
        found["steps"].append(step)
        found["outputs"].append([_finite(block.outputs) for block in blocks])
        found["weights"].append([_finite(block.weights) for block in blocks])
        found["ratio"].append(_finite(gradient_ratio(blocks)))

    look(0)
    kept = folder / store.CHECKPOINTS
    every = recipe.checkpoint.every_steps
    total = _last_step(folder)
    for saved in store.read_checkpoints(kept):
        if every and saved.step % every and saved.step != total:
            continue  # saved because it was interrupted there, which no other seed was
        weights = saved.tensors["weights"]
        task.load_state_dict({name.removeprefix("task."): t for name, t in weights.items()})
        look(saved.step)
    return found


def aligned(looks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The looks of several seeds at those steps alone that all of them have.

    Seeds can have other steps where checkpoints were made by the clock, or more often later on.
    """
    shared = set.intersection(*(set(look["steps"]) for look in looks))
    found = []
    for look in looks:
        places = [place for place, step in enumerate(look["steps"]) if step in shared]
        per_step = ("steps", "outputs", "weights", "ratio")
        found.append({**look, **{key: [look[key][at] for at in places] for key in per_step}})
    return found


def mean_ratio(looks: Sequence[Mapping[str, Any]], place: int) -> int | float | None:
    """The geometric mean over the seeds of the ratio at one look (0: the start, -1: the end)."""
    ratios = [look["ratio"][place] for look in looks]
    if any(ratio is None or ratio <= 0 for ratio in ratios):
        return 0.0 if all(ratio is not None for ratio in ratios) else None
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def over_training(name: str, looks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of a figure: the ratio of first to last block over the steps."""
    return _line(name, looks[0]["steps"], [look["ratio"] for look in looks])


def over_depth(name: str, looks: Sequence[Mapping[str, Any]], place: int = 0) -> dict[str, Any]:
    """A line of a figure: the norm at every block's output at one look, the blocks from 0 to 1."""
    count = len(looks[0]["blocks"])
    x = [index / max(1, count - 1) for index in range(count)]
    return _line(name, x, [look["outputs"][place] for look in looks])


def _line(
    name: str, x: Sequence[int | float], seeds: Sequence[Sequence[int | float | None]]
) -> dict[str, Any]:
    """Geometric mean, lowest and highest over the seeds, where all of them are above 0."""
    columns = {
        at: [float(value) for value in values if value is not None and value > 0]
        for at, values in zip(x, zip(*seeds, strict=True))
    }
    whole = {at: values for at, values in columns.items() if len(values) == len(seeds)}
    return {
        "name": name,
        "x": list(whole),
        "mean": [math.exp(sum(map(math.log, v)) / len(v)) for v in whole.values()],
        "low": [min(v) for v in whole.values()],
        "high": [max(v) for v in whole.values()],
        "dashed": False,
    }


def _last_step(folder: Path) -> int | None:
    """The step that the run ended at; None where it has not ended."""
    result = folder / "result.json"
    return int(store.read_json(result)["steps"]) if result.is_file() else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
