"""Distillation from the network before the task."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.tasks.task import Task, Wrapped, run_net


class WithOldNetwork(Wrapped):
    """A task with a copy of its network from before training, in evaluation mode. The copy is not
    part of the state, since it follows from the initial weights."""

    old_net: nn.Module

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        # not as a submodule, which would be trained and saved
        object.__setattr__(self, "old_net", deepcopy(task.net).eval().requires_grad_(False))

    @torch.no_grad()
    def old_logits(self, batch: Batch, inputs: tuple[Any, ...]) -> Float[Tensor, "n k"]:
        """Return the logits of the old network for these inputs of the network."""
        if next(self.old_net.parameters()).device != inputs[0].device:
            self.old_net.to(inputs[0].device)
        logits: Tensor = run_net(self.old_net, replace(batch, inputs=inputs[0]))
        return logits.float()


def distillation_loss(
    logits: Float[Tensor, "n k"],
    old_logits: Float[Tensor, "n k"],
    temperature: float,
    groups: Sequence[Sequence[int]],
) -> Float[Tensor, ""]:
    """Return the cross-entropy between the predictions of the old and of the new network, both at
    this temperature (Li and Hoiem 2016, equations 2 and 3): the mean over samples, the sum over
    groups of classes, each with a softmax of its own."""
    total = logits.new_zeros(())
    for group in groups:
        classes = list(group)
        targets = (old_logits[:, classes] / temperature).softmax(1)
        logs = (logits[:, classes] / temperature).log_softmax(1)
        total = total - (targets * logs).sum(1).mean()
    return total
