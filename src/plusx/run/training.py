"""Training a recipe in a folder: what has to hold before a run may begin or go on."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.errors import UserError
from plusx.recipe import Recipe, differences, to_toml
from plusx.run import build, memory
from plusx.run import folder as files
from plusx.run.distributed import DistributedContext, joined
from plusx.run.environment import remembered_precision
from plusx.run.examples import draw_examples
from plusx.run.optim import schedule_warnings
from plusx.run.progress import Display
from plusx.run.signals import Signals
from plusx.run.task_factory import TASKS
from plusx.run.trainer import Trainer
from plusx.tasks.prepare import find_device


# Fields that may change between the beginning of a run and its end. What the images and the
# machine are is judged by themselves, not by where the recipe says they are.
HARMLESS = (
    "checkpoint.",
    "compare.",
    "data.path",
    "data.workers",
    "device.kind",
    "device.parallel",
    "device.threads",
    "device.timeout",
    "evaluate.tta",
)


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    progress: bool = True,
    exact: bool = False,
    allow_data_change: bool = False,
) -> dict[str, Any]:
    """Train the recipe in the folder `out`, going on where it stopped; the content of result.json.

    `exact` refuses to go on where versions, threads or processor are others than at the beginning,
    which otherwise is a warning. `allow_data_change` goes on with other images than it began with.

    UserError: recipe, data or folder are wrong; nothing was trained. FloatingPointError: the loss
    is not finite; the last checkpoint stays. Stopped: SIGTERM or SIGINT came; the state was saved.
    """
    with joined(recipe.device.kind, recipe.device.timeout) as world:
        threads = torch.get_num_threads()
        if recipe.device.threads:
            torch.set_num_threads(recipe.device.threads)
        try:
            with Signals(patient=world.size > 1) as signals:
                world.signals = signals
                display = Display(quiet=not (progress and world.first))
                return _train(recipe, Path(out), world, display, exact, allow_data_change)
        finally:
            torch.set_num_threads(threads)


def _train(
    recipe: Recipe,
    out: Path,
    world: DistributedContext,
    display: Display,
    exact: bool,
    allow_data_change: bool,
) -> dict[str, Any]:
    chosen_here = recipe.device.precision == "auto"
    trainer = prepared(recipe, out, world)
    recipe, sets = trainer.recipe, trainer.sets
    with store.lock(out) if world.first else nullcontext():
        finished = None
        if world.first:
            files.refuse_foreign(out)
            if (out / files.RESULT).is_file():
                if not allow_data_change:
                    trainer.refuse_other_images()
                finished = store.read_json(out / files.RESULT)
            elif (out / files.RECIPE).is_file():
                refuse_other_recipe(out, recipe)
        result: dict[str, Any] | None = world.broadcast(finished)
        if result is not None:
            return result
        trainer.begin(exact=exact, allow_data_change=allow_data_change)
        with display:
            display.begin(trainer.total, trainer.state.step)
            if trainer.state.step:
                display.line(
                    f"plusx: resuming from step {trainer.state.step:,} of {trainer.total:,}"
                )
            if chosen_here:
                display.line(f"plusx: computing in {recipe.device.precision}")
            for warning in sets.warnings:
                if not warning.startswith("skipped "):  # each file is named in data.json
                    display.line(f"plusx: {warning}")
            if warning := build.untrained_warning(recipe):
                display.line(f"plusx: {warning}")
            for warning in schedule_warnings(recipe, trainer.total):
                display.line(f"plusx: {warning}")
            device = trainer.state.task.device
            memory.warn(recipe, trainer.net, device)
            with memory.explaining(recipe, trainer.net, device):
                result = trainer.run(display)
        if world.first:
            draw_examples(out, sets.validation)
        return result


def prepared(recipe: Recipe, out: Path, world: DistributedContext) -> Trainer:
    """The run of a recipe, before anything is written. UserError as `train` raises it."""
    if world.first:
        files.refuse_foreign(out)
    sets = build.open_sets(recipe)
    recipe = with_precision(build.resolved(recipe, sets.train), out, world)
    _check(recipe, sets)
    _refuse_disagreement(recipe, sets, world)
    if world.first and (out / files.RECIPE).is_file():
        refuse_other_recipe(out, recipe)
    trainer = Trainer(recipe, sets, out, world)
    _refuse_lone_values(trainer)
    return trainer


def with_precision(recipe: Recipe, out: Path, world: DistributedContext) -> Recipe:
    """The recipe with its precision chosen: what an unfinished run in `out` computes in, else what
    is quicker on this device.
    """
    if recipe.device.precision != "auto":
        return recipe
    chosen: Any = None
    if world.first and (out / files.RECIPE).is_file():
        chosen = files.read_recipe(out).device.precision
    elif world.first:
        chosen = remembered_precision(find_device(world.device(recipe.device.kind)))
    chosen = world.broadcast(chosen)
    return replace(recipe, device=replace(recipe.device, precision=chosen))


def _refuse_disagreement(recipe: Recipe, sets: build.Sets, world: DistributedContext) -> None:
    """UserError where the processes of a run were given different things to do."""
    ours = [to_toml(recipe), sets.description()]
    if world.size > 1 and (theirs := world.broadcast(ours)) != ours:
        other = "another recipe" if theirs[0] != ours[0] else "other images"
        raise UserError(f"rank {world.rank} was given {other} than rank 0")


def _refuse_lone_values(trainer: Trainer) -> None:
    """UserError where a batch of training is one sample that has one value a channel somewhere in
    the network, of which batch norm has no variance.
    """
    recipe, modality, loader = trainer.recipe, trainer.sets.train.modality, trainer.loader
    parts = trainer.world.size * recipe.optim.accumulation_steps
    if min(recipe.batch_size, loader.count) >= 2 * parts or modality.varies or modality.ndim != 2:
        return
    net = copy.deepcopy(trainer.net).to("meta").train()
    try:
        net(torch.zeros(1, modality.channels, *modality.size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return
    except Exception:  # only batch norm is asked here
        return
    else:
        return
    shared = f" for {parts} parts of a batch" if parts > 1 else ""
    raise UserError(
        f"batch_size = {recipe.batch_size}, and {loader.count:,} training images{shared}: batch "
        f"norm needs two images at a time, since {recipe.net_name or 'the network'} ends in one "
        f"value a channel at {' x '.join(map(str, modality.size))} pixels; set batch_size = "
        f"{2 * parts} or more"
    )


def _check(recipe: Recipe, sets: build.Sets) -> None:
    needs_validation = recipe.evaluate.patience or recipe.evaluate.keep == "best"
    if sets.validation is None and needs_validation:
        raise UserError(
            '[evaluate] patience and keep = "best" need validation images: [data] validation is 0'
        )
    channels = sets.train.modality.channels
    if recipe.net.in_channels not in (None, channels):
        raise UserError(
            f"[net] in_channels = {recipe.net.in_channels}, but the images of {sets.train.name} "
            f"have {channels}"
        )
    size, seen = recipe.net.size, sets.train.modality.size
    if size is not None and size not in (seen, seen[0] if seen[0] == seen[1] else None):
        raise UserError(
            f"[net] size = {size}, but the images of {sets.train.name} are "
            f"{' x '.join(map(str, seen))}"
        )
    has_classes = TASKS[recipe.task.kind].has_classes
    expected = recipe.net.num_classes if has_classes else None
    if expected is not None and expected != len(sets.train.classes):
        raise UserError(
            f"[net] num_classes = {expected}, but {sets.train.name} has "
            f"{len(sets.train.classes)} classes"
        )


def refuse_other_recipe(out: Path, recipe: Recipe) -> None:
    """UserError where the run in this folder was begun with another recipe, resolved as this."""
    changed = differences(files.read_recipe(out), recipe)
    harmful = [f"{key}: {how}" for key, how in changed.items() if not key.startswith(HARMLESS)]
    if not harmful:
        return
    is_longer = {*changed} <= {"epochs", "steps"} and (out / files.RESULT).is_file()
    advice = (
        f"the run is finished; to train longer, begin another one from its weights: "
        f"net.weights={out} --out OTHER"
        if is_longer
        else "choose another folder, or give the recipe that it was begun with"
    )
    raise UserError(f"{out} was begun with another recipe ({'; '.join(harmful)}); {advice}")
