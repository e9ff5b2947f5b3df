"""Runs of one recipe with several seeds, trained in one process as one network.

Each is an ordinary run in a folder of its own, and what `train` would have made of it but for
rounding. All stand at one step and are saved at one step; after a kill between two saves those that
are behind catch up alone.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from plusx import store
from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.nn.network import Network
from plusx.nn.together import why_not
from plusx.recipe import Recipe, differences
from plusx.recipe.tables import OneCycle
from plusx.run import folder as files
from plusx.run import parts
from plusx.run.distributed import World, joined
from plusx.run.judging import Interrupted
from plusx.run.progress import Display
from plusx.run.signals import Signals, Stopped
from plusx.run.trainer import Trainer
from plusx.run.training import prepared
from plusx.run.transfer import why_alone
from plusx.train.together import fit_together
from plusx.train.update import Descend


QUIET = Display(quiet=True)


def why_apart(recipe: Recipe) -> str:
    """What keeps runs of this recipe with several seeds from training as one; empty: nothing."""
    device, optim, schedule = recipe.device, recipe.optim, recipe.schedule
    warm = 0.0 if isinstance(schedule, OneCycle) else schedule.warm_until
    if recipe.task.kind != "classify":
        return f'[task] kind = "{recipe.task.kind}"; it has to be "classify"'
    if device.precision != "float32":
        return f'[device] precision = "{device.precision}"; it has to be "float32"'
    if device.compile:
        return "[device] compile = true"
    if device.memory != "keep":
        return f'[device] memory = "{device.memory}"; it has to be "keep"'
    if optim.accumulate > 1:
        return f"[optim] accumulate = {optim.accumulate}; a batch has to be taken whole"
    if optim.average:
        return f"[optim] average = {optim.average}"
    if warm:
        return f"[schedule] warm_until = {warm}; each run would have a rate of its own"
    if recipe.evaluate.patience:
        return f"[evaluate] patience = {recipe.evaluate.patience}; runs have to be equally long"
    if why := why_alone(recipe):
        return why
    spec = parts.spec_of(recipe.net)
    if not isinstance(spec, Net):
        return f"{spec} is a plain module, not a network that the language says"
    with torch.device("meta"):  # the parts alone are looked at
        return why_not(Network(spec))


def train_together(recipes: Sequence[Recipe], folders: Sequence[Path]) -> None:
    """Train recipes that differ in their seed alone, each in its folder, all as one network.

    Those that are finished are left as they are; where fewer than two are not, there is nothing to
    do. Afterwards `train` tells each one's result. Where training together comes to a bad end,
    which is a warning, the folders hold their last checkpoints, and `train` goes on from there with
    each run alone: so one that diverges, or does not fit in memory beside others, stops no other.

    UserError: a recipe, the data or a folder are wrong, or the runs cannot train as one; nothing
    was trained. Stopped: SIGTERM or SIGINT came; the states were saved, all at one step.
    """
    first = recipes[0]
    for other in recipes[1:]:
        if differs := differences(first, replace(other, seed=first.seed)):
            raise UserError(f"runs that train together differ in {', '.join(differs)}")
    if why := why_apart(first):
        raise UserError(f"these runs cannot train together: {why}")
    with joined(first.device.kind, first.device.timeout) as world:
        if world.size > 1:
            raise UserError("runs that train together are one process, not several of torchrun")
        threads = torch.get_num_threads()
        if first.device.threads:
            torch.set_num_threads(first.device.threads)
        try:
            with Signals() as signals:
                world.signals = signals
                _train(recipes, folders, world)
        finally:
            torch.set_num_threads(threads)


def _train(recipes: Sequence[Recipe], folders: Sequence[Path], world: World) -> None:
    missing = [
        (recipe, folder)
        for recipe, folder in zip(recipes, folders, strict=True)
        if not (folder / files.RESULT).is_file()
    ]
    if len(missing) < 2:
        return
    trainers = [prepared(recipe, folder, world) for recipe, folder in missing]
    counts = {len(trainer.sets.train): trainer.recipe.seed for trainer in trainers}
    if len(counts) > 1:
        said = ", ".join(f"{count:,} with seed {seed}" for count, seed in counts.items())
        raise UserError(f"runs that train together have equally many images; here: {said}")
    with ExitStack() as stack:
        for trainer in trainers:
            stack.enter_context(store.lock(trainer.out))
            files.refuse_foreign(trainer.out)
        if any((trainer.out / files.RESULT).is_file() for trainer in trainers):
            return  # another process made one meanwhile
        for trainer in trainers:
            trainer.begin(exact=False, allow_data_change=False)
            stack.enter_context(trainer.opened())
        try:
            _in_step(trainers, world)
        except Interrupted:
            *_, stopped = [trainer.stop() for trainer in trainers]
            raise stopped from None
        except Stopped:
            raise
        except (FloatingPointError, RuntimeError, OSError, MemoryError) as error:
            _note(trainers, {"event": "apart", "why": str(error)})
            warnings.warn(
                f"seeds {_seeds(trainers)} go on alone from their last checkpoints: {error}",
                stacklevel=2,
            )


def _in_step(trainers: Sequence[Trainer], world: World) -> None:
    """Train all to the end. Interrupted, Stopped: a signal came."""
    _level(trainers)
    _note(trainers, {"event": "together", "seeds": [each.recipe.seed for each in trainers]})
    lead, update = trainers[0], trainers[0].update
    assert isinstance(update, Descend)  # `why_apart` knows what makes it another one
    states = [trainer.state for trainer in trainers]
    for reports in fit_together(states, _batches(trainers), lead.lr, update):
        for trainer, report in zip(trainers, reports, strict=True):
            trainer.take(report, QUIET)
        if world.stopping is not None:
            raise Interrupted
        if any(trainer.due() for trainer in trainers):
            for trainer in trainers:
                trainer.save()
    for trainer in trainers:
        trainer.save()
    for trainer in trainers:
        trainer.finish()


def _level(trainers: Sequence[Trainer]) -> None:
    """Bring all to the step of the foremost, those that are behind alone."""
    ahead = max(trainer.state.step for trainer in trainers)
    for trainer in trainers:
        if trainer.state.step < ahead:
            _note([trainer], {"event": "catch up", "step": trainer.state.step, "until": ahead})
        trainer.advance(QUIET, ahead)


def _batches(trainers: Sequence[Trainer]) -> Iterator[Sequence[Batch]]:
    """A batch for each, step by step; between two epochs each is evaluated.

    The seconds of an epoch are shared equally: each run is told what it took of them.
    """
    lead = trainers[0]
    while lead.epoch < lead.epochs:
        begun, first = time.perf_counter(), lead.batch
        for trainer in trainers:
            trainer.saving_took = 0.0
        yield from zip(*(trainer.left(lead.total) for trainer in trainers), strict=True)
        took = time.perf_counter() - begun - sum(trainer.saving_took for trainer in trainers)
        for trainer in trainers:
            trainer.note_epoch(trainer.batch - first, took / len(trainers))
            trainer.advance(QUIET, trainer.state.step)


def _note(trainers: Sequence[Trainer], said: dict[str, object]) -> None:
    for trainer in trainers:
        trainer.timing.append({**said, "date": files.now()})


def _seeds(trainers: Sequence[Trainer]) -> str:
    return ", ".join(str(trainer.recipe.seed) for trainer in trainers)
