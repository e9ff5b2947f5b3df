"""One run, from its newest checkpoint to its result.

A checkpoint is all that is needed to go on: the state, where in which epoch it was taken, the
length of the log at that moment, and the sums of the epoch so far. What is written into log.jsonl
and result.json is a function of recipe, data and environment alone; the clock goes to timing.jsonl.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.errors import UserError
from plusx.recipe import Recipe, to_toml
from plusx.report.metrics import better, metrics_line
from plusx.run import environment as surroundings
from plusx.run import folder as files
from plusx.run import memory, optim, parts, task_factory
from plusx.run.distributed import DistributedContext
from plusx.run.engines import Engine, Reducer, engine_of
from plusx.run.evaluator import Evaluator, Interrupted
from plusx.run.progress import Display
from plusx.run.result import described, of_training, write_kept
from plusx.run.run_state import (
    EpochSums,
    Lines,
    NoLog,
    checkpoint_state,
    identity,
    refuse_not_finite,
)
from plusx.run.signals import Stopped
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import fit
from plusx.train.patience import Patience
from plusx.train.report import Report
from plusx.train.schedule import WarmupUntil
from plusx.train.state import State


# A checkpoint by the clock may take this share of the time at most.
MOST_SAVING = 0.02


class Trainer:
    """One run from its newest checkpoint to its result."""

    def __init__(
        self, recipe: Recipe, sets: parts.Sets, out: Path, world: DistributedContext
    ) -> None:
        self.recipe, self.sets, self.out, self.world = recipe, sets, out, world
        net, preprocessing = parts.make_net(recipe)
        memory.follow(recipe, net)
        self.net = net
        if preprocessing is not None:
            self.sets = sets = sets.prepared_as(preprocessing)
        parts.begin_from(recipe, net, self.sets.train)
        device = recipe.device
        task = prepare(
            task_factory.make_training_task(recipe, net, self.sets.train),
            device=world.device(device.kind),
            precision=device.precision,
            channels_last=device.channels_last,
            compile=device.compile,
        )
        self.state = State(task, optim.optimizer_of(recipe, task), recipe.seed)
        self.loader = self._loader(self.sets.train, "train", (world.rank, world.size))
        validation = self.sets.validation
        self.validating = None if validation is None else self._evaluator(validation)
        self.per_epoch = len(self.loader)
        self.total = recipe.steps or (recipe.epochs or 0) * self.per_epoch
        self.epochs = -(-self.total // self.per_epoch)  # the last one may be cut short
        self.lr = optim.schedule_of(recipe, self.total)
        self.engine: Engine | None = None  # of several processes
        self.keep_best = recipe.evaluate.keep == "best" or (
            recipe.evaluate.keep is None and recipe.evaluate.patience > 0
        )
        self.patience = Patience(recipe.evaluate.patience or 1)
        self.best: dict[str, Tensor] = {}
        self.best_epoch: int | None = None
        self.latest: tuple[int, dict[str, Any]] = (
            -1,
            {},
        )  # step and metrics of the last evaluation
        self.epoch = 0
        self.batch = 0  # of the epoch, already worked off
        self.sums = EpochSums()
        self.stopped_early = False
        self.finishing = False  # all is saved, and the task may hold the best weights
        self.changed: list[str] = []  # of the environment, since the run began
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0
        self.saving_took = 0.0

    def refuse_other_images(self) -> None:
        """UserError where the run was begun with other images, classes or preprocessing."""
        known = self.out / files.DATA
        if known.is_file() and identity(store.read_json(known)) != identity(
            self.sets.description()
        ):
            raise UserError(
                f"{self.out} was begun with other images than {self.sets.train.name} has now "
                "(--allow-data-change goes on all the same)"
            )

    def begin(self, *, exact: bool, allow_data_change: bool) -> None:
        """Write what the folder says from the first moment on, or go on from its checkpoint."""
        saved = self._before(exact, allow_data_change) if self.world.first else None
        position = 0
        if (told := checkpoint_state(saved, self.world)) is not None:
            position = self._restore(*told)
        reducer = None
        if self.world.size > 1:
            self.state.seed += self.world.rank << 32  # of dropout and stochastic depth
            self.engine = engine_of(self.recipe, self.state, self.world)
            reducer = Reducer(self.world, self.engine, self._samples)
        self.update = optim.update_of(self.recipe, reducer)
        self.log: Lines = NoLog()
        self.timing: Lines = NoLog()
        if self.world.first:
            self.log = store.Log(self.out / files.LOG, position)
            self.timing = store.Log(self.out / files.TIMING)
        begun = {"event": "begin", "step": self.state.step, "date": files.now()}
        changed = {"environment": self.changed} if self.changed else {}
        self.timing.append({**begun, **changed})

    def _before(self, exact: bool, allow_data_change: bool) -> store.Checkpoint | None:
        """Judge what the folder says and write what holds now; the checkpoint to go on from."""
        parallel = self.recipe.device.parallel if self.world.size > 1 else "none"
        now = surroundings.environment(self.state.task.device, self.world.size, parallel)
        data = self.sets.description()
        known = self.out / files.DATA
        if not allow_data_change:
            self.refuse_other_images()
        saved = store.load_checkpoint(self.out / store.CHECKPOINTS)
        if saved is not None and (self.out / files.ENVIRONMENT).is_file():
            before = store.read_json(self.out / files.ENVIRONMENT)
            if changed := surroundings.differences(before, now):
                self.changed = changed
                said = f"not bit for bit the same as without a break: {'; '.join(changed)}"
                if exact:
                    raise UserError(f"{self.out}: {said} (--exact)")
                warnings.warn(said, stacklevel=2)
        else:
            store.write_json(self.out / files.ENVIRONMENT, now)
        store.write_json(known, data)
        store.write_text(self.out / files.RECIPE, to_toml(self.recipe))
        return saved

    def run(self, display: Display) -> dict[str, Any]:
        """Train to the end and write the result."""
        with self.opened():
            try:
                self.advance(display, self.total)
                self.save()
                return self.finish()
            except Interrupted:
                raise self.stop() from None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The run's logs and images are open inside."""
        with self.log, self.timing, self.loader, self.validating or nullcontext():
            yield

    def advance(self, display: Display, until: int) -> None:
        """Train until so many steps are made, and end every epoch that ends with them.

        Stopped: a signal came; the state was saved. Interrupted: it came in an evaluation.
        """
        while self.epoch < self.epochs and not self.stopped_early:
            if self.state.step < until and not self.epoch_is_made:
                self._train_epoch(display, until)
            if not self.epoch_is_made:
                return
            self._end_epoch(display)

    @property
    def epoch_is_made(self) -> bool:
        """Whether all steps of the epoch are made: it waits to be ended."""
        return self.batch == self.per_epoch or self.state.step >= self.total

    def _train_epoch(self, display: Display, until: int) -> None:
        begun, first, self.saving_took = time.perf_counter(), self.batch, 0.0
        for report in fit(self.state, self.left(until), self.lr, self.update):
            self.take(report, display)
            if self.world.stopping is not None:
                raise self.stop()
            if self.due():
                self.save()
        self.note_epoch(self.batch - first, time.perf_counter() - begun - self.saving_took)

    def left(self, until: int) -> Iterator[Batch]:
        """The batches of the epoch that are not worked off, as long as there are steps to make."""
        missing = max(until - self.state.step, 0)
        left = islice(self.loader.epoch(self.epoch, self.batch), missing)
        return parts.mixed(self.recipe, left, lambda: self.state.step, len(self.sets.train.classes))

    def take(self, report: Report, display: Display) -> None:
        """Count, log and show a step that was made."""
        if isinstance(self.lr, WarmupUntil):
            self.lr.observe(report)
        self.batch += 1
        self.sums.add(report, self._samples(report.step - 1))
        said = {"step": report.step, "epoch": self.epoch + 1, "lr": report.lr, "loss": report.loss}
        self.log.append({**said, **report.scalars})
        display.step(report)

    def note_epoch(self, steps: int, seconds: float) -> None:
        """Say how long these steps of the epoch took, without saving."""
        took = {"seconds": seconds, "saving_seconds": self.saving_took}
        number = self.epoch + 1
        self.timing.append(
            {"event": "epoch", "epoch": number, "steps": steps, **took, "date": files.now()}
        )

    def _end_epoch(self, display: Display) -> None:
        """Evaluate where the recipe says so, log the epoch, and begin the next one."""
        number, every = self.epoch + 1, self.recipe.evaluate.every
        record: dict[str, Any] = {
            "epoch": number,
            "step": self.state.step,
            **self.sums.means,
        }
        said = [f"epoch {number}/{self.epochs}", f"train loss {record['train_loss']:.4f}"]
        if "train_error" in record:
            said.append(f"train error {record['train_error']:.1%}")
        due = number == self.epochs or (every and number % every == 0)
        if self.validating is not None and due:
            begun = time.perf_counter()
            figures = self._metrics(self._evaluated(), self.validating)
            record["validation"] = {
                key: value for key, value in figures.items() if isinstance(value, int | float)
            }
            self._observe(figures, number)
            self.latest = (self.state.step, figures)
            seconds = time.perf_counter() - begun
            self.timing.append({"event": "evaluate", "epoch": number, "seconds": seconds})
            said.append(f"validation {metrics_line(figures, self.state.task.metrics[:1])}")
        self.log.append(record)
        display.line("  ".join(said))
        self.epoch, self.batch, self.sums = number, 0, EpochSums()

    def _observe(self, figures: dict[str, Any], epoch: int) -> None:
        monitor = self.recipe.evaluate.monitor or self.state.task.metrics[0]
        if figures.get(monitor) is None:
            return  # nothing to judge by, as Dice of images without any of it
        figure = better(monitor, figures[monitor])
        before = self.patience.best
        out_of_patience = self.patience.observe(figure)
        self.stopped_early = bool(self.recipe.evaluate.patience) and out_of_patience
        if self.keep_best and (before is None or figure > before):
            weights = self._evaluated().state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
            self.best_epoch = epoch

    def finish(self) -> dict[str, Any]:
        """Write the result of a run that is at its end and saved."""
        self.finishing = True
        result = self._result()
        if self.world.first:
            store.write_json(self.out / files.RESULT, result)
        self.timing.append({"event": "end", "step": self.state.step, "date": files.now()})
        self.world.wait()  # none is done before the result is written
        return result

    def _result(self) -> dict[str, Any]:
        """The figures of the run, of the weights that are kept, which are written beside it."""
        task = self._evaluated()
        if self.best:
            task.load_state_dict(self.best)
        validation = None
        if self.validating is not None:
            step, validation = self.latest
            if self.best or step != self.state.step:
                validation = self._metrics(task, self.validating)
        trained: dict[str, Any] = {}
        if self.recipe.evaluate.train_set:
            with self._evaluator(self.sets.train) as images:
                trained = self._metrics(task, images)
        if self.world.first:
            write_kept(self.out / files.WEIGHTS, self.recipe, self.sets.train, task)
        return {
            **described(self.recipe, task.net),
            "data": self.sets.train.name,
            "seed": self.recipe.seed,
            "split": "validation" if validation else None,
            "validation": validation,
            **of_training(task, trained),
            "epochs": self.epoch,
            "steps": self.state.step,
            "stopped_early": self.stopped_early,
            "weights": "best" if self.best else "last",
            "best_epoch": self.best_epoch,
            "ema": self.state.ema is not None,
            "tta": "none",
            "dtype": self.recipe.device.precision,
        }

    def _evaluated(self) -> Task:
        """The weights that are evaluated: the averaged ones where there are any."""
        if self.state.ema is not None:
            return self.state.ema
        return self.state.task if self.engine is None else self.engine.plain()

    def _metrics(self, task: Task, images: Evaluator) -> dict[str, Any]:
        """The figures of a task. FloatingPointError: its weights or predictions are not finite."""
        refuse_not_finite(task.state_dict(), self._where())
        try:
            return images.metrics(task)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{self._where()}: {error}; the last checkpoint stays"
            ) from error

    def _samples(self, step: int) -> int:
        """How many samples the batch of a step has, those of other processes among them."""
        begin = step % self.per_epoch * self.recipe.batch_size
        return min(self.recipe.batch_size, self.loader.count - begin)

    def _evaluator(self, source: Dataset) -> Evaluator:
        size = parts.judged_at_a_time(source, self.recipe.batch_size)
        return Evaluator(source, size, self.world, lambda own: self._loader(own, "validation"))

    def _loader(self, source: Dataset, split: str, part: tuple[int, int] = (0, 1)) -> Loader:
        size = self.recipe.batch_size
        return Loader(
            source,
            split=split,
            augment=self.recipe.data.augment,
            batch_size=size if split == "train" else parts.judged_at_a_time(source, size),
            seed=self.recipe.seed,
            workers=self.recipe.data.workers,
            device=self.state.task.device,
            part=part,
            channels_last=self.recipe.device.channels_last,
            sampler=self.recipe.data.sampler,
            samples_per_class=getattr(self.recipe.data, "samples_per_class", 1),
        )

    def due(self) -> bool:
        """Whether it is time to save."""
        said, waited = self.recipe.checkpoint, time.monotonic() - self.saved_at
        by_steps = said.every_steps and self.state.step % said.every_steps == 0
        patient = max(said.every_seconds, self.save_seconds / MOST_SAVING)
        due = by_steps or bool(said.every_seconds and waited >= patient)
        if self.world.size > 1:
            due = self.world.told(due)  # one clock for all: where state is sharded, all save
        return due

    def save(self) -> None:
        """Keep all that is needed to go on from here. FloatingPointError: weights not finite."""
        begun = time.monotonic()
        tensors, state = (
            self.state.state_dict() if self.engine is None else self.engine.whole(self.state)
        )
        if not self.world.first:
            return
        refuse_not_finite(tensors["weights"], self._where())
        if self.best:
            tensors = {**tensors, "best": self.best}
        values = {
            "state": state,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": asdict(self.sums),
            "patience": asdict(self.patience),
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
            "schedule": self.lr.state_dict() if isinstance(self.lr, WarmupUntil) else None,
            "log": self.log.sync(),
        }
        store.save_checkpoint(
            self.out / store.CHECKPOINTS,
            self.state.step,
            tensors,
            values,
            keep=self.recipe.checkpoint.keep,
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begun
        self.saving_took += self.save_seconds

    def _where(self) -> str:
        return f"step {self.state.step}, rate {self.state.optimizer.param_groups[0]['lr']}"

    def _restore(self, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> int:
        """Go on from a checkpoint; the length that the log had."""
        self.best = tensors.pop("best", {})
        self.state.load_state_dict(tensors, values["state"])
        self.epoch, self.batch = values["epoch"], values["batch"]
        self.sums = EpochSums(**values["sums"])
        self.patience = Patience(**values["patience"])
        self.best_epoch = values["best_epoch"]
        self.stopped_early = values["stopped_early"]
        if isinstance(self.lr, WarmupUntil):
            self.lr.load_state_dict(values["schedule"])
        position: int = values["log"]
        return position

    def stop(self) -> Stopped:
        """Save, where that is not done, and what is to be raised because of a signal."""
        assert self.world.stopping is not None
        if not self.finishing:
            self.save()
        self.world.wait()  # until it is saved
        return Stopped(self.world.stopping, self.state.step, self.out)
