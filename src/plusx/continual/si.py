"""Synaptic intelligence: a penalty by how much a weight has lowered the loss."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plusx.continual.method import Memory, Method, Position, Trained, buffer_name
from plusx.continual.penalty import Weights, WithPenalty
from plusx.tasks.task import Task


class PathIntegral(WithPenalty):
    """A task that adds up, for every weight and over the updates, minus the gradient of its loss
    times the change of the weight: what the weight has contributed to the decrease of the loss
    (Zenke et al. 2017, equation 3). The gradient is that of the loss without the penalty.

    The sums, and the weights at the start and after the latest update, are buffers, saved with the
    state of training.
    """

    def __init__(self, task: Task, strength: float, terms: list[tuple[Weights, Weights]]) -> None:
        super().__init__(task, strength, terms)
        self.gradients: dict[str, Tensor] = {}
        for name, weight in task.net.named_parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(partial(self._record, name))
            self.register_buffer(buffer_name("path", name), torch.zeros_like(weight.detach()))
            for kind in ("start", "latest"):
                self.register_buffer(buffer_name(kind, name), weight.detach().clone())

    def _record(self, name: str, weight: Tensor) -> None:
        """Record the gradient of a weight, before it may be clipped."""
        assert weight.grad is not None
        self.gradients[name] = weight.grad.detach().clone()

    @torch.no_grad()
    def after_step(self) -> None:
        for name, weight in self.task.net.named_parameters():
            if name not in self.gradients:
                continue
            path = self.get_buffer(buffer_name("path", name))
            latest = self.get_buffer(buffer_name("latest", name))
            gradient = self.gradients.pop(name) - self.penalty_gradient(name, latest)
            path -= gradient * (weight - latest)
            latest.copy_(weight)
        self.task.after_step()


@dataclass(frozen=True)
class Si(Method):
    """A penalty by importances that add up over the tasks: the path integral of a task over the
    squared change of the weight plus `damping` (Zenke et al. 2017, equations 4 and 5). `strength`
    is 2 c there. Negative importances count as 0."""

    strength: float
    damping: float

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        names = [name for name, _ in task.net.named_parameters()]
        terms: list[tuple[Weights, Weights]] = []
        if memory.tensors:
            importances = {name: memory.tensors[f"importance.{name}"] for name in names}
            terms.append((importances, {name: memory.tensors[f"anchor.{name}"] for name in names}))
        return PathIntegral(task, self.strength, terms)

    def finish(self, trained: Trained) -> Memory:
        tensors: dict[str, Tensor] = {}
        for name, weight in trained.task.net.named_parameters():
            path, start, latest = (
                trained.state[buffer_name(kind, name)].to(weight.device)
                for kind in ("path", "start", "latest")
            )
            importance = (path / ((latest - start) ** 2 + self.damping)).clamp(min=0)
            before = trained.memory.tensors.get(f"importance.{name}")
            if before is not None:
                importance = importance + before.to(weight.device)
            tensors[f"importance.{name}"] = importance
            tensors[f"anchor.{name}"] = weight.detach()
        return Memory(tensors=tensors)
