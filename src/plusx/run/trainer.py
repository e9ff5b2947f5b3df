"""`Trainer`: one run, from its newest checkpoint to its result.

A checkpoint has the training state, the position in the epoch, the length of the log, and the sums
of the epoch so far. log.jsonl and result.json depend only on recipe, data and environment; times
are in timing.jsonl.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.mix import cutmix, mixup
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.model import costs
from plusx.nn.costs import multiply_adds
from plusx.recipe import Recipe, to_toml
from plusx.report.metrics import METRICS, better, metrics_line
from plusx.run import build, file_names, memory, optim, task_factory
from plusx.run import environment as surroundings
from plusx.run import folder as files
from plusx.run.distributed import DistributedContext
from plusx.run.engines import Engine, Reducer, engine_of
from plusx.run.evaluator import Evaluator, Interrupted
from plusx.run.progress import Display
from plusx.run.signals import Stopped
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import fit
from plusx.train.patience import Patience
from plusx.train.report import Report
from plusx.train.schedule import WarmupUntil
from plusx.train.state import State
from plusx.weights import save_network


# largest fraction of the time for checkpoints by `every_seconds`
MAX_SAVING = 0.02
# classes; with more, the confusion matrix is too large for result.json
MAX_MATRIX = 500


@dataclass
class EpochSums:
    """Sums over the epoch so far; `error` is None if the task has no error rate."""

    images: int = 0
    loss: float = 0.0
    error: float | None = 0.0

    def add(self, report: Report, images: int) -> None:
        """Add the report of a step with this number of samples."""
        self.images += images
        self.loss += report.loss * images
        error = report.scalars.get("error")
        self.error = None if error is None or self.error is None else self.error + error * images

    @property
    def means(self) -> dict[str, float]:
        """Means over the samples, for the log."""
        images = max(self.images, 1)
        means = {"train_loss": self.loss / images}
        return means if self.error is None else {**means, "train_error": self.error / images}


class Trainer:
    """Trains a recipe in a folder: resumes, evaluates, saves checkpoints, writes the result."""

    def __init__(
        self, recipe: Recipe, sets: build.Sets, out: Path, world: DistributedContext
    ) -> None:
        self.recipe, self.sets, self.out, self.world = recipe, sets, out, world
        net, preprocessing = build.make_net(recipe)
        memory.apply_plan(recipe, net)
        self.net = net
        if preprocessing is not None:
            self.sets = sets = sets.with_preprocessing(preprocessing)
        build.freeze_and_whiten(recipe, net, sets.train)
        device = recipe.device
        task = prepare(
            task_factory.make_training_task(recipe, net, sets.train),
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
        self.epochs = -(-self.total // self.per_epoch)  # the last one may be incomplete
        self.lr = optim.schedule_of(recipe, self.total)
        self.engine: Engine | None = None  # of several processes
        self.keep_best = recipe.evaluate.keep == "best" or (
            recipe.evaluate.keep is None and recipe.evaluate.patience > 0
        )
        self.monitor = recipe.evaluate.monitor or task.metrics[0]
        self.patience = Patience(recipe.evaluate.patience or 1)
        self.best: dict[str, Tensor] = {}
        self.best_epoch: int | None = None
        self.latest: tuple[int, dict[str, Any]] = (-1, {})  # step and metrics of an evaluation
        self.log: store.Log | None = None  # rank 0 alone writes
        self.timing: store.Log | None = None
        self.epoch = 0
        self.batch = 0  # completed batches of the epoch
        self.sums = EpochSums()
        self.stopped_early = False
        self.finishing = False  # no checkpoint may be saved: the task can have the best weights
        self.changed: list[str] = []  # differences of the environment since the start
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0  # of the latest checkpoint
        self.epoch_save_seconds = 0.0

    def refuse_other_data(self) -> None:
        """Raise UserError if the run has other samples, classes or preprocessing."""
        path, now = self.out / file_names.DATA, self.sets.description()
        if path.is_file() and _identity(files.read_data(self.out)) != _identity(now):
            raise UserError(
                f"the {self.sets.train.inputs} of {self.sets.train.name} have changed "
                f"since the start of {self.out} (--out FOLDER starts another run, "
                "--allow-data-change resumes with the new ones)"
            )

    def begin(self, *, exact: bool, allow_data_change: bool) -> None:
        """Write the files that describe the run, or resume from its checkpoint."""
        saved = self._checkpoint(exact, allow_data_change) if self.world.first else None
        values = self.world.broadcast(None if saved is None else saved.values)
        position = 0
        if values is not None:
            tensors = self.world.broadcast_tensors({} if saved is None else saved.tensors)
            position = self._restore(tensors, values)
        reducer = None
        if self.world.size > 1:
            self.state.seed += self.world.rank << 32  # of dropout and stochastic depth
            self.engine = engine_of(self.recipe, self.state, self.world)
            reducer = Reducer(self.world, self.engine, self._samples)
        self.update = optim.update_of(self.recipe, reducer)
        if self.world.first:
            self.log = store.Log(self.out / file_names.LOG, position)
            self.timing = store.Log(self.out / file_names.TIMING)
        changed = {"environment": self.changed} if self.changed else {}
        self._time("begin", {"step": self.state.step, "date": files.now(), **changed})

    def _time(self, event: str, values: Mapping[str, Any]) -> None:
        """Append a line to timing.jsonl."""
        if self.timing is not None:
            self.timing.append({"event": event, **values})

    def _checkpoint(self, exact: bool, allow_data_change: bool) -> store.Checkpoint | None:
        """Check and write the folder's files; return the checkpoint to resume from, if any."""
        parallel = self.recipe.device.parallel if self.world.size > 1 else "none"
        now = surroundings.environment(self.state.task.device, self.world.size, parallel)
        if not allow_data_change:
            self.refuse_other_data()
        saved = store.load_checkpoint(self.out / store.CHECKPOINTS)
        if saved is not None and (self.out / file_names.ENVIRONMENT).is_file():
            before = files.read_environment(self.out)
            if changed := surroundings.differences(before, now):
                self.changed = changed
                message = f"not bit for bit equal to an uninterrupted run: {'; '.join(changed)}"
                if exact:
                    raise UserError(f"{self.out}: {message} (--exact)")
                warnings.warn(message, stacklevel=2)
        else:
            store.write_json(self.out / file_names.ENVIRONMENT, now)
        store.write_json(self.out / file_names.DATA, self.sets.description())
        store.write_text(self.out / file_names.RECIPE, to_toml(self.recipe))
        return saved

    def run(self, display: Display) -> dict[str, Any]:
        """Train to the end and write the result."""
        with self.open_resources():
            try:
                self.advance(display, self.total)
                self.save()
                return self.finish()
            except Interrupted:
                raise self.stop() from None

    @contextmanager
    def open_resources(self) -> Iterator[None]:
        """Open the run's logs and data loaders inside the block."""
        resources = (self.log, self.timing, self.loader, self.validating)
        with ExitStack() as stack:
            for resource in resources:
                if resource is not None:
                    stack.enter_context(resource)
            yield

    def advance(self, display: Display, until: int) -> None:
        """Train up to step `until`, and evaluate after every completed epoch.

        Raises Stopped on a signal, after a checkpoint is saved; Interrupted during an evaluation.
        """
        while self.epoch < self.epochs and not self.stopped_early:
            if self.state.step < until and not self._epoch_done:
                self._train_epoch(display, until)
            if not self._epoch_done:
                return
            self._end_epoch(display)

    @property
    def _epoch_done(self) -> bool:
        return self.batch == self.per_epoch or self.state.step >= self.total

    def _train_epoch(self, display: Display, until: int) -> None:
        begin, first_batch, self.epoch_save_seconds = time.perf_counter(), self.batch, 0.0
        for report in fit(self.state, self.batches(until), self.lr, self.update):
            if isinstance(self.lr, WarmupUntil):
                self.lr.observe(report)
            self.batch += 1
            self.sums.add(report, self._samples(report.step - 1))
            if self.log is not None:
                values = {"step": report.step, "epoch": self.epoch + 1, "lr": report.lr}
                self.log.append({**values, "loss": report.loss, **report.scalars})
            display.step(report)
            if self.world.stopping is not None:
                raise self.stop()
            if self._checkpoint_due():
                self.save()
        seconds = time.perf_counter() - begin - self.epoch_save_seconds
        self._time(
            "epoch",
            {
                "epoch": self.epoch + 1,
                "steps": self.batch - first_batch,
                "seconds": seconds,
                "saving_seconds": self.epoch_save_seconds,
                "date": files.now(),
            },
        )

    def batches(self, until: int) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch up to step `until`, with MixUp or CutMix."""
        num_remaining = max(until - self.state.step, 0)
        num_classes = len(self.sets.train.classes)
        mix: Any = self.recipe.data.mix
        mix_batch = {"mixup": mixup, "cutmix": cutmix}.get(mix.kind)
        for batch in islice(self.loader.epoch(self.epoch, self.batch), num_remaining):
            if mix_batch is None:
                yield batch
            else:
                yield mix_batch(mix.alpha)(batch, self.recipe.seed, self.state.step, num_classes)

    def _end_epoch(self, display: Display) -> None:
        """Evaluate if it is due, log the epoch, and advance to the next one."""
        number, every = self.epoch + 1, self.recipe.evaluate.every
        record: dict[str, Any] = {"epoch": number, "step": self.state.step, **self.sums.means}
        words = [f"epoch {number}/{self.epochs}", f"train loss {record['train_loss']:.4f}"]
        if "train_error" in record:
            words.append(f"train error {METRICS['train_error'].text(record['train_error'])}")
        due = number == self.epochs or (every and number % every == 0)
        if self.validating is not None and due:
            begin = time.perf_counter()
            metrics = self._metrics(self._evaluated(), self.validating)
            record["validation"] = {
                key: value for key, value in metrics.items() if isinstance(value, int | float)
            }
            self._observe(metrics, number)
            self.latest = (self.state.step, metrics)
            self._time("evaluate", {"epoch": number, "seconds": time.perf_counter() - begin})
            shown = dict.fromkeys([self.state.task.metrics[0], self.monitor])
            words.append(f"validation {metrics_line(metrics, list(shown))}")
        if self.log is not None:
            self.log.append(record)
        display.line("  ".join(words))
        self.epoch, self.batch, self.sums = number, 0, EpochSums()

    def _observe(self, metrics: Mapping[str, Any], epoch: int) -> None:
        if metrics.get(self.monitor) is None:
            return  # undefined, such as Dice of images without the class
        value = better(self.monitor, metrics[self.monitor])
        best = self.patience.best
        out_of_patience = self.patience.observe(value)
        self.stopped_early = bool(self.recipe.evaluate.patience) and out_of_patience
        if self.keep_best and (best is None or value > best):
            weights = self._evaluated().state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
            self.best_epoch = epoch

    def finish(self) -> dict[str, Any]:
        """Write and return the result, after the last checkpoint."""
        self.finishing = True
        result = self._result()
        if self.world.first:
            store.write_json(self.out / file_names.RESULT, result)
        self._time("end", {"step": self.state.step, "date": files.now()})
        self.world.barrier()  # no process ends before the result is written
        return result

    def _result(self) -> dict[str, Any]:
        """Write the weights; return the content of result.json."""
        task, recipe = self._evaluated(), self.recipe
        if self.best:
            task.load_state_dict(self.best)
        validation = None
        if self.validating is not None:
            step, validation = self.latest
            if self.best or step != self.state.step:
                validation = self._metrics(task, self.validating)
        if validation is not None and len(self.sets.train.classes) > MAX_MATRIX:
            validation = {key: value for key, value in validation.items() if key != "confusion"}
        trained: dict[str, Any] = {}
        if recipe.evaluate.train_set:
            with self._evaluator(self.sets.train) as evaluator:
                trained = self._metrics(task, evaluator)
        train_error = None
        if "accuracy" in trained:
            count = trained["count"]
            train_error = round((1 - trained["accuracy"]) * count) / count
        net: Any = task.net
        if self.world.first:
            save_network(
                net,
                self.out / file_names.WEIGHTS,
                model=recipe.net_name,
                preprocessing=self.sets.train.modality.to_dict(),
                classes=self.sets.train.classes
                if task_factory.TASKS[recipe.task.kind].has_classes
                else None,
                multilabel=getattr(recipe.task, "multilabel", False),
                task=asdict(recipe.task),
                data=self.sets.train.name,
            )
        return {
            "name": recipe.net_name or "inline",
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "multiply_adds": _multiply_adds(recipe, net),
            "data": self.sets.train.name,
            "seed": recipe.seed,
            "split": "validation" if validation else None,
            "validation": validation,
            "metrics": list(task.metrics),
            "noun": self.sets.train.noun,
            "train": {
                key: trained[key] for key in ("count", "loss", task.metrics[0]) if key in trained
            },
            "train_error": train_error,
            "epochs": self.epoch,
            "steps": self.state.step,
            "stopped_early": self.stopped_early,
            "weights": "best" if self.best else "last",
            "best_epoch": self.best_epoch,
            "ema": self.state.ema is not None,
            "tta": "none",
            "dtype": recipe.device.precision,
        }

    def _evaluated(self) -> Task:
        """Return the task with the evaluated weights: the EMA, if there is one."""
        if self.state.ema is not None:
            return self.state.ema
        return self.state.task if self.engine is None else self.engine.full_task()

    def _metrics(self, task: Task, evaluator: Evaluator) -> dict[str, Any]:
        """Evaluate a task. Raises FloatingPointError for weights or predictions not finite."""
        refuse_not_finite(task.state_dict(), self._where())
        try:
            return evaluator.metrics(task)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{self._where()}: {error}; the last checkpoint remains"
            ) from error

    def _samples(self, step: int) -> int:
        """Return the number of inputs in the batch of a step, over all processes."""
        begin = step % self.per_epoch * self.recipe.batch_size
        return self.loader.views * min(self.recipe.batch_size, self.loader.count - begin)

    def _evaluator(self, dataset: Dataset) -> Evaluator:
        size = build.evaluation_batch_size(dataset, self.recipe.batch_size)
        return Evaluator(dataset, size, self.world, lambda part: self._loader(part, "validation"))

    def _loader(self, source: Dataset, split: str, part: tuple[int, int] = (0, 1)) -> Loader:
        size = self.recipe.batch_size
        return Loader(
            source,
            split=split,
            augment=self.recipe.data.augment,
            batch_size=size if split == "train" else build.evaluation_batch_size(source, size),
            seed=self.recipe.seed,
            workers=self.recipe.data.workers,
            device=self.state.task.device,
            part=part,
            channels_last=self.recipe.device.channels_last,
            sampler=self.recipe.data.sampler,
            samples_per_class=getattr(self.recipe.data, "samples_per_class", 1),
        )

    def _checkpoint_due(self) -> bool:
        table, waited = self.recipe.checkpoint, time.monotonic() - self.saved_at
        by_steps = table.every_steps and self.state.step % table.every_steps == 0
        seconds = max(table.every_seconds, self.save_seconds / MAX_SAVING)
        due = by_steps or bool(table.every_seconds and waited >= seconds)
        # rank 0 decides, since all ranks of a sharded state take part in saving
        return bool(self.world.broadcast(due))

    def save(self) -> None:
        """Write a checkpoint. Raises FloatingPointError if weights are not finite."""
        begin = time.monotonic()
        tensors, state = (
            self.state.state_dict() if self.engine is None else self.engine.full_state(self.state)
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
            "log": self.log.sync() if self.log is not None else 0,
        }
        store.save_checkpoint(
            self.out / store.CHECKPOINTS,
            self.state.step,
            tensors,
            values,
            keep=self.recipe.checkpoint.keep,
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begin
        self.epoch_save_seconds += self.save_seconds

    def _where(self) -> str:
        return f"step {self.state.step}, rate {self.state.optimizer.param_groups[0]['lr']}"

    def _restore(self, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> int:
        """Restore a checkpoint; return the length of the log at that time."""
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
        """Save a checkpoint after a signal, and return the exception to raise."""
        assert self.world.stopping is not None
        if not self.finishing:
            self.save()
        self.world.barrier()  # until the checkpoint is saved
        return Stopped(self.world.stopping, self.state.step, self.out)


def _multiply_adds(recipe: Recipe, net: Any) -> int:
    """Return the MACs of one input of the data's size, or by default of the network's.

    A volume counts with all its slices for a network of images.
    """
    spec = build.spec_of(recipe.net)
    if recipe.head is None:
        return costs(spec).multiply_adds
    size = getattr(recipe.data, "patch", None)
    if size is None:
        size = each_dimension(getattr(recipe.data, "size", None) or spec.size, spec.ndim)
    return multiply_adds(net, tuple(size))


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise FloatingPointError for a weight that is not finite, which is never saved.

    The loss of that update can still be finite.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FloatingPointError(
                f"{where}: {name} is not finite after the update; the last checkpoint remains"
            )


def _identity(data: Mapping[str, Any]) -> list[Any]:
    """Return the entries of a data.json that identify the data: all but name and warnings."""
    splits = [data[split] and data[split]["fingerprint"] for split in ("train", "validation")]
    return [*splits, data["classes"], data["preprocessing"]]
