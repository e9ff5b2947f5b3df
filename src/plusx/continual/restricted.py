"""Decisions among some classes only, by a mask on the network's outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from plusx.continual.method import Position
from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.tasks.task import Task, Wrapped


LOWEST = -1e9  # the logit of an excluded class: its probability is 0


class OfTask(Wrapped):
    """A task whose decisions are among the classes of the sample's own task of the stream.

    This equals one linear head for every task. In training, the task of a sample follows from its
    class; a prediction is among the classes of task `number` of the stream.
    """

    def __init__(self, task: Task, position: Position, number: int | None = None) -> None:
        super().__init__(task)
        refuse_smoothing(task)
        num_classes = position.num_classes
        same = torch.zeros(num_classes, num_classes, dtype=torch.bool)
        for classes in position.classes:
            same[torch.tensor(classes)[:, None], torch.tensor(classes)] = True
        allowed = torch.zeros(num_classes, dtype=torch.bool)
        allowed[list(position.classes[position.task if number is None else number])] = True
        self.same, self.allowed = same, allowed

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        targets, same = batch.known_targets, self.same.to(batch.inputs.device)
        if targets.ndim == 1:
            allowed = same[targets]
        else:  # of mixed samples, the classes of both
            allowed = (targets > 0).float() @ same.float() > 0
        with restricted(self.task.net, allowed):
            loss: Tensor = self.task(batch)
        return loss

    def predict(self, batch: Batch) -> Prediction:
        with restricted(self.task.net, self.allowed.to(batch.inputs.device)):
            return self.task.predict(batch)


@contextmanager
def restricted(net: nn.Module, allowed: Bool[Tensor, "k"] | Bool[Tensor, "n k"]) -> Iterator[None]:
    """Make the logits of other classes than the allowed ones very low inside the context."""

    def mask(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return logits.float().masked_fill(~allowed, LOWEST)

    with net.register_forward_hook(mask):
        yield


def refuse_smoothing(task: Task) -> None:
    """Raise UserError for label smoothing, which would give weight to excluded classes."""
    while isinstance(task, Wrapped):
        task = task.task
    if getattr(task, "label_smoothing", 0.0):
        raise UserError("[task] label_smoothing cannot be used with decisions among some classes")
