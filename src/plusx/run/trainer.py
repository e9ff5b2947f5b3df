"""One run, from its newest checkpoint to its result.

A checkpoint is all that is needed to go on: the state, where in which epoch it was taken, the
length of the log at that moment, and the sums of the epoch so far. What is written into log.jsonl
and result.json is a function of recipe, data and environment alone; the clock goes to timing.jsonl.
"""

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.source import Source
from plusx.grammar.shapes import measure
from plusx.grammar.spec import Net
from plusx.recipe import Recipe, to_toml
from plusx.run import environment as surroundings
from plusx.run import folder as files
from plusx.run import parts
from plusx.run.progress import Display
from plusx.run.signals import Signals, Stopped
from plusx.tasks.prepare import prepare
from plusx.tasks.task import Task
from plusx.train.loop import evaluate, fit
from plusx.train.patience import Patience
from plusx.train.report import Report
from plusx.train.schedule import WarmUntil
from plusx.train.state import State
from plusx.weights import write_weights


# A checkpoint by the clock may take this share of the time at most.
MOST_SAVING = 0.02


@dataclass
class Sums:
    """The training figures of an epoch so far, exact in JSON."""

    images: int = 0
    loss: float = 0.0
    error: float = 0.0

    def add(self, report: Report, images: int) -> None:
        self.images += images
        self.loss += report.loss * images
        self.error += report.seen["error"] * images


class _Interrupted(Exception):
    """A signal came while the validation images were looked at."""


class Trainer:
    """One run from its newest checkpoint to its result."""

    def __init__(self, recipe: Recipe, sets: parts.Sets, out: Path, signals: Signals) -> None:
        self.recipe, self.sets, self.out, self.signals = recipe, sets, out, signals
        net, preprocessing = parts.make_net(recipe)
        self.net = net
        if preprocessing is not None:
            self.sets = sets = sets.prepared_as(preprocessing)
        device = recipe.device
        task = prepare(
            parts.make_training_task(recipe, net, self.sets.train),
            device=device.kind,
            precision=device.precision,
            channels_last=device.channels_last,
            compile=device.compile,
        )
        self.state = State(task, parts.optimizer_of(recipe, task), recipe.seed)
        self.loader = self._loader(self.sets.train, "train")
        validation = self.sets.validation
        self.validating = None if validation is None else self._loader(validation, "validation")
        self.per_epoch = len(self.loader)
        self.total = recipe.steps or (recipe.epochs or 0) * self.per_epoch
        self.epochs = -(-self.total // self.per_epoch)  # the last one may be cut short
        self.lr = parts.make_schedule(recipe, self.total)
        self.update = parts.update_of(recipe)
        self.keep_best = recipe.evaluate.keep == "best" or (
            recipe.evaluate.keep is None and recipe.evaluate.patience > 0
        )
        self.patience = Patience(recipe.evaluate.patience or 1)
        self.best: dict[str, Tensor] = {}
        self.best_epoch: int | None = None
        self.epoch = 0
        self.batch = 0  # of the epoch, already worked off
        self.sums = Sums()
        self.stopped_early = False
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0
        self.saving_took = 0.0

    def refuse_other_images(self) -> None:
        """ValueError where the run was begun with other images, classes or preprocessing."""
        known = self.out / files.DATA
        if known.is_file() and _identity(store.read_json(known)) != _identity(
            self.sets.description()
        ):
            raise ValueError(
                f"{self.out} was begun with other images than {self.sets.train.name} has now "
                "(--allow-data-change goes on all the same)"
            )

    def begin(self, *, exact: bool, allow_data_change: bool) -> None:
        """Write what the folder says from the first moment on, or go on from its checkpoint."""
        now = surroundings.environment(self.state.task.device)
        data = self.sets.description()
        known = self.out / files.DATA
        if not allow_data_change:
            self.refuse_other_images()
        saved = store.load_checkpoint(self.out / store.CHECKPOINTS)
        changed: list[str] = []
        if saved is not None and (self.out / files.ENVIRONMENT).is_file():
            before = store.read_json(self.out / files.ENVIRONMENT)
            if changed := surroundings.differences(before, now):
                said = f"not bit for bit the same as without a break: {'; '.join(changed)}"
                if exact:
                    raise ValueError(f"{self.out}: {said} (--exact)")
                warnings.warn(said, stacklevel=2)
        else:
            store.write_json(self.out / files.ENVIRONMENT, now)
        store.write_json(known, data)
        store.write_text(self.out / files.RECIPE, to_toml(self.recipe))
        position = 0
        if saved is not None:
            position = self._restore(saved)
        self.log = store.Log(self.out / files.LOG, position)
        self.timing = store.Log(self.out / files.TIMING)
        begun = {"event": "begin", "step": self.state.step, "date": files.now()}
        self.timing.append({**begun, "environment": changed} if changed else begun)

    def run(self, display: Display) -> dict[str, Any]:
        """Train to the end and write the result."""
        with self.log, self.timing, self.loader, self.validating or nullcontext():
            try:
                while self.epoch < self.epochs and not self.stopped_early:
                    self._train_epoch(display)
                    self._end_epoch(display)
                self._save()
                result = self._result()
            except _Interrupted:
                if self.epoch < self.epochs and not self.stopped_early:
                    self._save()  # afterwards it is saved, and the task may hold the best weights
                raise self._stopped() from None
            store.write_json(self.out / files.RESULT, result)
            self.timing.append({"event": "end", "step": self.state.step, "date": files.now()})
        return result

    def _train_epoch(self, display: Display) -> None:
        begun, first, self.saving_took = time.perf_counter(), self.batch, 0.0
        lengths: list[int] = []
        missing = max(self.total - self.state.step, 0)
        left = islice(self.loader.epoch(self.epoch, self.batch), missing)
        batches = self._counted(left, lengths)
        mixed = parts.mixed(
            self.recipe, batches, lambda: self.state.step, len(self.sets.train.classes)
        )
        for report in fit(self.state, mixed, self.lr, self.update):
            if isinstance(self.lr, WarmUntil):
                self.lr.observe(report)
            self.batch += 1
            self.sums.add(report, lengths[-1])
            self.log.append(
                {
                    "step": report.step,
                    "epoch": self.epoch + 1,
                    "lr": report.lr,
                    "loss": report.loss,
                    **report.seen,
                }
            )
            display.step(report)
            if self.signals.received is not None:
                self._save()
                raise self._stopped()
            self._save_if_due()
        self.timing.append(
            {
                "event": "epoch",
                "epoch": self.epoch + 1,
                "steps": self.batch - first,
                "seconds": time.perf_counter() - begun - self.saving_took,
                "saving_seconds": self.saving_took,
                "date": files.now(),
            }
        )

    def _end_epoch(self, display: Display) -> None:
        """Evaluate where the recipe says so, log the epoch, and begin the next one."""
        number, every = self.epoch + 1, self.recipe.evaluate.every
        record: dict[str, Any] = {
            "epoch": number,
            "step": self.state.step,
            "train_loss": self.sums.loss / max(self.sums.images, 1),
            "train_error": self.sums.error / max(self.sums.images, 1),
        }
        said = [
            f"epoch {number}/{self.epochs}",
            f"train loss {record['train_loss']:.4f}",
            f"train error {record['train_error']:.1%}",
        ]
        due = number == self.epochs or (every and number % every == 0)
        if self.validating is not None and due:
            begun = time.perf_counter()
            figures = self._judged(self._evaluated(), self.validating)
            record["validation"] = {
                key: value for key, value in figures.items() if isinstance(value, int | float)
            }
            self._observe(figures, number)
            seconds = time.perf_counter() - begun
            self.timing.append({"event": "evaluate", "epoch": number, "seconds": seconds})
            said.append(
                f"validation loss {figures['loss']:.4f}, accuracy {figures['accuracy']:.1%}"
            )
        self.log.append(record)
        display.line("  ".join(said))
        self.epoch, self.batch, self.sums = number, 0, Sums()

    def _observe(self, figures: dict[str, Any], epoch: int) -> None:
        monitor = self.recipe.evaluate.monitor
        figure = figures[monitor] if monitor == "accuracy" else -figures[monitor]
        before = self.patience.best
        out_of_patience = self.patience.observe(figure)
        self.stopped_early = bool(self.recipe.evaluate.patience) and out_of_patience
        if self.keep_best and (before is None or figure > before):
            weights = self._evaluated().state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
            self.best_epoch = epoch

    def _result(self) -> dict[str, Any]:
        """The figures of the run, of the weights that are kept, which are written beside it."""
        task = self._evaluated()
        if self.best:
            task.load_state_dict(self.best)
        validation = self._judged(task, self.validating) if self.validating else None
        with self._loader(self.sets.train, "validation") as images:
            trained = self._judged(task, images)
        net = task.net
        table = self.recipe.net
        name = None if isinstance(table, Net) else table.base
        write_weights(
            self.out / files.WEIGHTS,
            net,
            model=name,
            preprocessing=self.sets.train.preprocessing.to_dict(),
            classes=self.sets.train.classes,
            multilabel=self.recipe.task.multilabel,
            view="whole" if self.sets.train.in_memory else "middle",
        )
        spec = parts.spec_of(table)
        counted = measure(spec) if isinstance(spec, Net) else parts.plain_figures(spec)
        return {
            "name": name or "inline",
            "data": self.sets.train.name,
            "seed": self.recipe.seed,
            "split": "validation" if validation else None,
            "validation": validation,
            "train": {key: trained[key] for key in ("count", "loss", "accuracy")},
            "train_error": round((1 - trained["accuracy"]) * trained["count"]) / trained["count"],
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "multiply_adds": counted.multiply_adds,
            "epochs": self.epoch,
            "steps": self.state.step,
            "stopped_early": self.stopped_early,
            "weights": "best" if self.best else "last",
            "best_epoch": self.best_epoch,
            "averaged": self.state.average is not None,
        }

    def _evaluated(self) -> Task:
        """The weights that are evaluated: the averaged ones where there are any."""
        return self.state.task if self.state.average is None else self.state.average

    def _judged(self, task: Task, loader: Loader) -> dict[str, Any]:
        """The figures of a task. FloatingPointError: its weights or predictions are not finite."""
        self._refuse_spoilt(task.state_dict())
        try:
            return evaluate(task, self._watched(loader))
        except FloatingPointError as error:
            rate = self.state.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(
                f"step {self.state.step}, rate {rate}: {error}; the last checkpoint stays"
            ) from error

    def _watched(self, loader: Loader) -> Iterator[Batch]:
        """The images in order and as they are, until a signal comes."""
        for batch in loader.epoch(0):
            if self.signals.received is not None:
                raise _Interrupted
            yield batch

    def _counted(self, batches: Iterable[Batch], lengths: list[int]) -> Iterator[Batch]:
        for batch in batches:
            lengths.append(len(batch))
            yield batch

    def _loader(self, source: Source, split: str) -> Loader:
        return Loader(
            source,
            split=split,
            augment=self.recipe.data.augment,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            workers=self.recipe.data.workers,
            device=self.state.task.device,
        )

    def _save_if_due(self) -> None:
        said, waited = self.recipe.checkpoint, time.monotonic() - self.saved_at
        by_steps = said.every_steps and self.state.step % said.every_steps == 0
        patient = max(said.every_seconds, self.save_seconds / MOST_SAVING)
        if by_steps or (said.every_seconds and waited >= patient):
            self._save()

    def _save(self) -> None:
        begun = time.monotonic()
        tensors, state = self.state.state_dict()
        self._refuse_spoilt(tensors["weights"])
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
            "schedule": self.lr.state_dict() if isinstance(self.lr, WarmUntil) else None,
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

    def _refuse_spoilt(self, weights: dict[str, Tensor]) -> None:
        """An update can spoil the weights while its loss is still finite; that is never saved."""
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                rate = self.state.optimizer.param_groups[0]["lr"]
                raise FloatingPointError(
                    f"step {self.state.step}, rate {rate}: {name} is not finite after the update; "
                    "the last checkpoint stays"
                )

    def _restore(self, saved: store.Checkpoint) -> int:
        """Go on from a checkpoint; the length that the log had."""
        values = saved.values
        tensors = dict(saved.tensors)
        self.best = tensors.pop("best", {})
        self.state.load_state_dict(tensors, values["state"])
        self.epoch, self.batch = values["epoch"], values["batch"]
        self.sums = Sums(**values["sums"])
        self.patience = Patience(**values["patience"])
        self.best_epoch = values["best_epoch"]
        self.stopped_early = values["stopped_early"]
        if isinstance(self.lr, WarmUntil):
            self.lr.load_state_dict(values["schedule"])
        position: int = values["log"]
        return position

    def _stopped(self) -> Stopped:
        assert self.signals.received is not None
        return Stopped(self.signals.received, self.state.step, self.out)


def _identity(data: dict[str, Any]) -> list[Any]:
    """What of a data.json says which images it was; a notice or a new name is no other data."""
    prints = [data[part] and data[part]["fingerprint"] for part in ("train", "validation")]
    return [*prints, data["classes"], data["preprocessing"]]
