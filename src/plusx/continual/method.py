"""The base class of methods, and what passes from one task to the next."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.errors import UserError
from plusx.tasks.task import Task


Scenario = str  # class, task or domain


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a stream a run is.

    scenario: "class" (new classes, one decision among all), "task" (new classes, the task of an
        input is given) or "domain" (the same classes, other inputs)
    classes: the class numbers of every task
    task: from 0
    """

    scenario: Scenario
    classes: tuple[tuple[int, ...], ...]
    task: int
    seed: int

    @property
    def num_classes(self) -> int:
        """The number of classes of all tasks."""
        return 1 + max(number for classes in self.classes for number in classes)

    @property
    def current(self) -> tuple[int, ...]:
        """The classes of the task that is trained."""
        return self.classes[self.task]

    @property
    def earlier(self) -> tuple[int, ...]:
        """The classes of the tasks before, without those of the current one."""
        return tuple(c for c in self.so_far if c not in self.current)

    @property
    def so_far(self) -> tuple[int, ...]:
        """The classes of all tasks up to the current one."""
        return tuple(sorted({c for task in self.classes[: self.task + 1] for c in task}))


@dataclass(frozen=True)
class Memory:
    """What passes from one task to the next, besides the weights.

    buffer: of each task so far, the numbers of the training samples that are replayed
    tensors: what else the method needs, by name
    """

    buffer: tuple[tuple[int, ...], ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors_of(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A task of the stream whose training is finished.

    task: with the trained network, in evaluation mode
    parts: the training samples of each task so far, without replayed ones
    memory: from the task before
    state: the tensors of the task at the end of training, also those of wrappers
    batches: batches of a data set in order, without augmentation, on the device of the task
    """

    task: Task
    parts: Sequence[Dataset]
    memory: Memory
    position: Position
    state: Mapping[str, Tensor]
    batches: Callable[[Dataset], Iterable[Batch]]


class Method:
    """A method of continual learning; its fields are those of its table in a recipe.

    The base class trains on the current task and does nothing against forgetting. Subclasses
    override the methods that they need.
    """

    scenarios: ClassVar[tuple[Scenario, ...]] = ("class", "task", "domain")
    why: ClassVar[str] = ""  # why it does not support the other scenarios

    def check(self, parts: Sequence[Dataset]) -> None:
        """Raise UserError if the method does not suit the training samples of all tasks."""

    def training_set(self, parts: Sequence[Dataset], memory: Memory, seed: int) -> Dataset:
        """Return what the last of these tasks is trained on."""
        return parts[-1]

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        """Return the task with another loss around it. Its network has the weights after the task
        before; this may change them, or freeze some."""
        return task

    def finish(self, trained: Trained) -> Memory:
        """Return what the next task needs; the same for the same trained task."""
        return Memory()

    def predictor(self, task: Task, memory: Memory, position: Position, number: int) -> Task:
        """Return the task that predicts task `number` (from 0), after the task at `position`."""
        return task


def buffer_name(*words: str) -> str:
    """Return a name for a buffer of a module, which must not have dots."""
    return "/".join(words).replace(".", "/")


def check_buffer(buffer: int, parts: Sequence[Dataset]) -> None:
    """Raise UserError for a buffer that holds all samples."""
    count = sum(map(len, parts))
    if buffer >= count:
        raise UserError(
            f"[method] buffer = {buffer:,}: the stream has {count:,} training {parts[0].inputs}; "
            '"joint" trains on all of them'
        )
