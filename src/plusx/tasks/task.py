"""The base class of tasks: a network with its loss, its predictions and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.metrics.meter import Meter
from plusx.nn.masking import masked


class Task(nn.Module, ABC):
    """A module whose `forward(batch)` is the loss.

    A task has no access to the optimizer, device, step number, files or logger. Its buffers and
    submodules are its whole state. `net` is the trained network; saved alone, it can be loaded
    alone.

    `scalars` are named values of the latest forward, detached, each a mean over the batch; reports
    include them.

    `metrics` are the names of its main metrics, the most important first; `monitors` are further
    ones that can select the best weights. `tta` lists the test-time augmentations that its
    predictions can be averaged over. A `dense` task predicts positions of an input, which is then
    padded and never cropped. Without `has_labels` it predicts something else than classes.

    A new kind of task is a class that implements the abstract methods. Modify a task by a `Wrapped`
    that contains it, never by inheriting from it.
    """

    net: nn.Module
    scalars: dict[str, Tensor]
    metrics: tuple[str, ...]
    monitors: tuple[str, ...] = ()
    tta: tuple[str, ...] = ("none",)
    dense: bool = False
    has_labels: bool = True

    def __init__(self) -> None:
        super().__init__()
        self.scalars = {}

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of a batch: a mean over its samples, so that losses of parts can be
        added."""

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """Return the prediction for each input; targets are not needed. The task predicts in its
        current mode: call `eval()` first, as with any torch module."""

    @abstractmethod
    def meters(self) -> list[Meter]:
        """Return new meters, which compute metrics from predictions and targets."""

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        """Yield the prediction in slabs along the first spatial dimension, for predictions that
        need much memory; most tasks yield one slab."""
        yield self.predict(batch)

    def predict_stored(self, batch: Batch) -> list[Prediction]:
        """Return the prediction for each input, on the CPU, in pixels of the stored input. Raises
        FloatingPointError if it is not finite."""
        slabs = (slab.cpu().checked() for slab in self.predict_slabs(batch))
        return next(slabs).to_stored(batch, slabs)

    def after_step(self) -> None:
        """Run after every update, for example to update a teacher."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters, on which batches must be."""
        for parameter in self.parameters():
            return parameter.device
        return torch.device("cpu")


def run_net(net: nn.Module, batch: Batch) -> Any:
    """Return the network's output for a batch; padding does not change it."""
    if batch.lengths is None:
        return net(batch.inputs)
    return masked(net, batch.inputs, batch.lengths)


class ForwardPass(NamedTuple):
    """The loss of a batch, with the inputs and the output of the network."""

    loss: Tensor
    inputs: tuple[Any, ...]
    output: Tensor


def forward_pass(task: "Task", batch: Batch) -> ForwardPass:
    """Return the loss of a task, with the last inputs and output of its network."""
    passes: list[tuple[tuple[Any, ...], Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passes.append((inputs, output))

    with task.net.register_forward_hook(record):
        loss: Tensor = task(batch)
    return ForwardPass(loss, *passes[-1])


def require_task(task: object) -> None:
    """Raise UserError if this is not a Task, for example a network."""
    if not isinstance(task, Task):
        hint = ": plusx.Classify(net) is one" if isinstance(task, nn.Module) else ""
        raise UserError(f"{type(task).__name__} is not a Task{hint}")


class Wrapped(Task, ABC):
    """A task that modifies another one: half precision, test-time augmentation, distillation.

    It delegates everything that it does not define. The modules, parameters and buffers of the
    wrapped task are also its own, under the same names, so that a state_dict of one fits the other;
    anything else that a wrapper registers must have other names.
    """

    task: Task

    def __init__(self, task: Task) -> None:
        modes = [(module, module.training) for module in task.modules()]
        object.__setattr__(self, "task", task)  # not as a submodule, which would change the names
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

    @property
    def has_labels(self) -> bool:  # type: ignore[override]
        return self.task.has_labels

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.task(batch)
        return loss

    def predict(self, batch: Batch) -> Prediction:
        return self.task.predict(batch)

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        if type(self).predict is not Wrapped.predict:
            return super().predict_slabs(batch)  # of its own predictions
        return self.task.predict_slabs(batch)

    def meters(self) -> list[Meter]:
        return self.task.meters()

    def after_step(self) -> None:
        self.task.after_step()


def compute(task: Task, meters: Sequence[Meter]) -> dict[str, Any]:
    """Return the metrics of a task's meters, the most important first."""
    values: Mapping[str, Any] = {
        name: value for meter in meters for name, value in meter.compute().items()
    }
    return {name: values[name] for name in task.metrics if name in values} | dict(values)
