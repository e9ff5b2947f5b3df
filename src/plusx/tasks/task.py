"""What a task is: a network together with its loss, its predictions and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter


class Task(nn.Module, ABC):
    """A module whose `forward(batch)` is the loss.

    A task sees no optimizer, device, step number, file or logger. Its buffers and submodules are
    its whole state. `net` is the network that is trained; saved alone, it loads alone.

    `scalars` are named numbers of the latest forward, detached, each a mean over the batch. Reports
    carry them on.

    `metrics` are the names of what its meters compute that says how good it is, the foremost first;
    `monitors` are further ones by which the best weights can be chosen. `tta` lists the test-time
    augmentations over which its predictions can be averaged. `dense` says whether it predicts
    positions of an input, of which then all is taken, padded, and nothing cropped.

    A new kind of task is a class that fills in the abstract methods. One task is changed into
    another by a `Wrapped` that holds it, never by inheriting from it.
    """

    net: nn.Module
    scalars: dict[str, Tensor]
    metrics: tuple[str, ...]
    monitors: tuple[str, ...] = ()
    tta: tuple[str, ...] = ("none",)
    dense: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.scalars = {}

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of a batch: a mean over its samples, so that parts of a batch can be added."""

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """The prediction for each input, whether or not the batch has targets.

        The task predicts in the mode it is in: call `eval()` first, as with every torch module.
        """

    @abstractmethod
    def meters(self) -> list[Meter]:
        """Fresh meters, which turn predictions and targets into metrics."""

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        """The prediction in slabs along the first dimension of space, for inputs whose prediction
        takes much memory; most tasks have one slab.
        """
        yield self.predict(batch)

    def predict_stored(self, batch: Batch) -> list[Prediction]:
        """The prediction for each input alone, on the CPU, in pixels of the input as stored.

        FloatingPointError: it is not finite.
        """
        slabs = (slab.cpu().checked() for slab in self.predict_slabs(batch))
        return next(slabs).to_stored(batch, slabs)

    def after_step(self) -> None:
        """Called once after every update, for what a task has to do then (a teacher to move)."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where batches have to go."""
        for parameter in self.parameters():
            return parameter.device
        return torch.device("cpu")


def require_task(task: object) -> None:
    """UserError: this is not a Task, for example a network."""
    if not isinstance(task, Task):
        hint = ": plusx.Classify(net) makes one" if isinstance(task, nn.Module) else ""
        raise UserError(f"{type(task).__name__} is not a Task{hint}")


class Wrapped(Task, ABC):
    """A task that changes another one: half precision, test-time augmentation, distillation.

    It delegates everything that it does not define itself. The wrapped task's modules, parameters
    and buffers are its own, under the same names, so that a state_dict of either fits the other;
    what a wrapper registers besides must have names of its own.
    """

    task: Task

    def __init__(self, task: Task) -> None:
        modes = [(module, module.training) for module in task.modules()]
        object.__setattr__(self, "task", task)  # no submodule: that would change the names
        super().__init__()
        self._modules, self._parameters = task._modules, task._parameters
        self._buffers = task._buffers
        self._non_persistent_buffers_set = task._non_persistent_buffers_set
        for module, mode in modes:
            module.training = mode

    @property
    def training(self) -> bool:
        return self.task.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.task.training = mode

    @property
    def scalars(self) -> dict[str, Tensor]:
        return self.task.scalars

    @scalars.setter
    def scalars(self, scalars: dict[str, Tensor]) -> None:
        self.task.scalars = scalars

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.task.metrics

    @property
    def monitors(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.task.monitors

    @property
    def tta(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.task.tta

    @property
    def dense(self) -> bool:  # type: ignore[override]
        return self.task.dense

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.task(batch)
        return loss

    def predict(self, batch: Batch) -> Prediction:
        return self.task.predict(batch)

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        return self.task.predict_slabs(batch)

    def meters(self) -> list[Meter]:
        return self.task.meters()

    def after_step(self) -> None:
        self.task.after_step()


def compute(task: Task, meters: Sequence[Meter]) -> dict[str, Any]:
    """The metrics of a task's meters: those that say how good it is first, the foremost before."""
    values: Mapping[str, Any] = {
        name: value for meter in meters for name, value in meter.compute().items()
    }
    return {name: values[name] for name in task.metrics if name in values} | dict(values)
