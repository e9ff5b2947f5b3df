"""Training a recipe in a folder, with the checks before a run starts or resumes."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plusx import store
from plusx.data.modality import Modality
from plusx.data.readers.verdicts import Skipped
from plusx.errors import UserError, counted
from plusx.grammar.model import External
from plusx.grammar.spec import Net
from plusx.recipe import Recipe, differences, to_toml
from plusx.run import build, file_names, memory
from plusx.run import folder as files
from plusx.run.distributed import DistributedContext, join_processes
from plusx.run.environment import cached_precision, num_threads
from plusx.run.evaluation import refuse_views
from plusx.run.examples import draw_examples
from plusx.run.optim import schedule_warnings
from plusx.run.progress import Display
from plusx.run.signals import Signals
from plusx.run.task_factory import TASKS
from plusx.run.trainer import Trainer
from plusx.tasks.prepare import find_device


# fields that may change when a run is resumed; images and environment are compared separately
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
    "stream.previous",
    "stream.seeds",
    "tune.",
)
MIN_STEPS = 8  # of an epoch, so that running statistics follow the weights


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    progress: bool = True,
    exact: bool = False,
    allow_data_change: bool = False,
) -> dict[str, Any]:
    """Train the recipe in the folder `out`, or resume it; return the content of result.json.

    exact: refuse to resume with other versions, threads or another processor, instead of a warning
    allow_data_change: resume also if the images have changed
    Raises UserError if recipe, data or folder are invalid, FloatingPointError if the loss is not
    finite (the last checkpoint remains), Stopped on SIGTERM or SIGINT, after a checkpoint is saved.
    """
    with (
        join_processes(recipe.device.kind, recipe.device.timeout) as world,
        num_threads(recipe.device.threads),
        Signals(patient=world.size > 1) as world.signals,
    ):
        display = Display(quiet=not (progress and world.first))
        return _train(recipe, Path(out), world, display, exact, allow_data_change)


def _train(
    recipe: Recipe,
    out: Path,
    world: DistributedContext,
    display: Display,
    exact: bool,
    allow_data_change: bool,
) -> dict[str, Any]:
    auto_precision = recipe.device.precision == "auto"
    trainer = make_trainer(recipe, out, world)
    recipe, sets = trainer.recipe, trainer.sets
    with store.lock(out) if world.first else nullcontext():
        finished = None
        if world.first:
            files.refuse_foreign(out)
            if (out / file_names.RESULT).is_file():
                if not allow_data_change:
                    trainer.refuse_other_data()
                finished = files.read_result(out)
            elif (out / file_names.RECIPE).is_file():
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
            if auto_precision:
                display.line(f"plusx: computing in {recipe.device.precision}")
            for warning in sets.warnings:
                if not isinstance(warning, Skipped):  # files are listed in data.json
                    display.line(f"plusx: {warning}")
            if warning := build.untrained_warning(recipe):
                display.line(f"plusx: {warning}")
            for warning in schedule_warnings(recipe, trainer.total):
                display.line(f"plusx: {warning}")
            if warning := _one_step_warning(trainer):
                display.line(f"plusx: {warning}")
            device = trainer.state.task.device
            memory.warn(recipe, trainer.net, device)
            with memory.explain_exhaustion(recipe, trainer.net, device):
                result = trainer.run(display)
        if world.first:
            draw_examples(out, sets.validation)
        return result


def make_trainer(recipe: Recipe, out: Path, world: DistributedContext) -> Trainer:
    """Return the trainer of a recipe, without writing files. Raises UserError as `train` does."""
    if world.first:
        files.refuse_foreign(out)
    sets = build.open_sets(recipe)
    recipe = build.resolved(recipe, sets.train)
    recipe = with_precision(recipe, out, world, sets.train.modality.ndim)
    _check(recipe, sets)
    _check_ranks_agree(recipe, sets, world)
    if world.first and (out / file_names.RECIPE).is_file():
        refuse_other_recipe(out, recipe)
    trainer = Trainer(recipe, sets, out, world)
    _check_batch_norm(trainer)
    return trainer


def with_precision(recipe: Recipe, out: Path, world: DistributedContext, ndim: int = 2) -> Recipe:
    """Return the recipe with "auto" replaced by the precision of the run, or the faster one."""
    if recipe.device.precision != "auto":
        return recipe
    precision: Any = None
    if world.first and (out / file_names.RECIPE).is_file():
        precision = files.read_recipe(out).device.precision
    elif world.first and ndim != 2:
        precision = "float32"  # the measurement is of images; volumes can diverge in bfloat16
    elif world.first:
        precision = cached_precision(find_device(world.device(recipe.device.kind)))
    precision = world.broadcast(precision)
    return replace(recipe, device=replace(recipe.device, precision=precision))


def _check_ranks_agree(recipe: Recipe, sets: build.Sets, world: DistributedContext) -> None:
    """Raise UserError if the processes of a run have different recipes or data."""
    state = [to_toml(recipe), sets.description()]
    if world.size > 1 and (of_rank_0 := world.broadcast(state)) != state:
        other = "another recipe" if of_rank_0[0] != state[0] else "other data"
        raise UserError(f"rank {world.rank} has {other} than rank 0")


def _one_step_warning(trainer: Trainer) -> str:
    """Return a warning if batch norm's running statistics get one step per epoch, else ""."""
    count, smaller = trainer.loader.count, max(2, trainer.loader.count // MIN_STEPS)
    has_statistics = any(name.endswith("running_mean") for name, _ in trainer.net.named_buffers())
    if trainer.per_epoch > 1 or smaller >= trainer.recipe.batch_size or not has_statistics:
        return ""
    inputs = trainer.sets.train.inputs
    return (
        f"an epoch is a single step, as batch_size = {trainer.recipe.batch_size} takes all "
        f"{count:,} {inputs}: the running statistics of batch norm, with which {inputs} are "
        f"evaluated and predicted, lag behind the weights; set batch_size={smaller}"
    )


def _check_batch_norm(trainer: Trainer) -> None:
    """Raise UserError if batch norm gets a single value per channel in training."""
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
    except Exception:  # reported later by training
        return
    else:
        return
    shared = f" for {parts} parts of a batch" if parts > 1 else ""
    raise UserError(
        f"batch_size = {recipe.batch_size}, and {loader.count:,} training images{shared}: batch "
        f"norm needs two images at a time, since {recipe.net_name or 'the network'} ends in one "
        f"value per channel at {' x '.join(map(str, modality.size))} pixels; set batch_size = "
        f"{2 * parts} or more"
    )


def _check(recipe: Recipe, sets: build.Sets) -> None:
    needs_validation = recipe.evaluate.patience or recipe.evaluate.keep == "best"
    if sets.validation is None and needs_validation:
        raise UserError(
            '[evaluate] patience and keep = "best" need a validation set: [data] validation is 0'
        )
    # padding is masked by hooks, which torch.compile and recomputation do not run
    device = recipe.device
    if sets.train.modality.sequence and (device.compile or device.memory != "keep"):
        key = "compile = true" if device.compile else f'memory = "{device.memory}"'
        raise UserError(
            f"[device] {key}: not for {sets.train.modality.inputs} of different lengths, whose "
            "padding would change the result; leave it out"
        )
    modality = sets.train.modality
    spec = build.spec_of(recipe.net)
    refuse_views(modality, spec, recipe.evaluate.tta)
    # a network of images with a head segments volumes slice by slice
    slices = int(recipe.head is not None and (spec.ndim, modality.ndim) == (2, 3))
    if (spec.ndim + slices, spec.takes_tokens) != (modality.ndim, modality.tokens):
        raise UserError(
            f"[net] {recipe.net_name or 'the network'} takes {_shape(spec)}, and the "
            f"{modality.inputs} of {sets.train.name} are {_shape(modality)}"
        )
    channels = sets.train.modality.channels
    if recipe.net.in_channels not in (None, channels):
        raise UserError(
            f"[net] in_channels = {recipe.net.in_channels}, but the {sets.train.modality.inputs} "
            f"of {sets.train.name} have {channels}"
        )
    size, data_size = recipe.net.size, sets.train.modality.size
    side = data_size[0] if len(set(data_size)) == 1 else None
    if size is not None and size not in (data_size, side):
        raise UserError(
            f"[net] size = {size}, but the {sets.train.modality.inputs} of {sets.train.name} are "
            f"{' x '.join(map(str, data_size))}"
        )
    has_classes = TASKS[recipe.task.kind].has_classes
    expected = recipe.net.num_classes if has_classes else None
    if expected is not None and expected != len(sets.train.classes):
        raise UserError(
            f"[net] num_classes = {expected}, but {sets.train.name} has "
            f"{len(sets.train.classes)} classes"
        )


def _shape(inputs: Net | External | Modality) -> str:
    """Return the kind of arrays that inputs are, for a message."""
    tokens = inputs.tokens if isinstance(inputs, Modality) else inputs.takes_tokens
    return "sequences of tokens" if tokens else f"arrays in {counted(inputs.ndim, 'dimension')}"


def refuse_other_recipe(out: Path, recipe: Recipe) -> None:
    """Raise UserError if the run in this folder has another recipe; both are resolved."""
    changed = differences(files.read_recipe(out), recipe)
    harmful = [f"{key}: {how}" for key, how in changed.items() if not key.startswith(HARMLESS)]
    if not harmful:
        return
    is_longer = {*changed} <= {"epochs", "steps"} and (out / file_names.RESULT).is_file()
    advice = (
        "the run is finished; to train longer, start a new run from its weights: "
        f"net.weights={out} --out OTHER"
        if is_longer
        else "choose another folder, or give the recipe of that run"
    )
    raise UserError(f"{out} has a run of another recipe ({'; '.join(harmful)}); {advice}")
