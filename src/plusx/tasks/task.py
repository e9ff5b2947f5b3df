"""What a task is: a network together with the question it is asked."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.tasks.meters import Meter


class Task(nn.Module, ABC):
    """A module whose `forward(batch)` is the loss.

    A task sees no optimizer, device, step number, file or logger. Its buffers and submodules are
    its whole state. `net` is the network that is trained; saved alone, it loads alone.

    `seen` is what the latest forward saw on the way: short names and detached numbers, each a mean
    over the batch. Reports carry them on.

    `scores` are the figures of its meters that say how good it is, the foremost first.

    A new kind of task is a class that fills in the abstract methods. One task is changed into
    another by a wrapper that holds it, never by inheriting from it.
    """

    net: nn.Module
    seen: dict[str, Tensor]
    scores: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.seen = {}

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of a batch: a mean over its samples, so that parts of a batch can be added."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """The answer for each input, the first dimension being the batch.

        The task answers in the mode it is in: call `eval()` first, as with every torch module.
        """

    @abstractmethod
    def meters(self) -> list[Meter]:
        """Fresh meters, which turn predictions and targets into figures."""

    def after_step(self) -> None:
        """Called once after every update, for what a task has to do then (a teacher to move)."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where batches have to go."""
        for parameter in self.parameters():
            return parameter.device
        return torch.device("cpu")
