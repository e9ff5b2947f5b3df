"""Quadratic penalties on changes of the weights, for EWC and SI."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from plusx.continual.method import buffer_name
from plusx.data.batch import Batch
from plusx.tasks.task import Task, Wrapped


Weights = Mapping[str, Tensor]  # by the names of the network's parameters


class WithPenalty(Wrapped):
    """A task with a penalty on changes of its network's weights: strength / 2 times the sum of
    importance (weight - anchor)^2, over all weights and all pairs of importances and anchors.

    After each forward `scalars["penalty"]` is that term.
    """

    def __init__(
        self, task: Task, strength: float, terms: Sequence[tuple[Weights, Weights]]
    ) -> None:
        super().__init__(task)
        self.strength, self.num_terms = strength, len(terms)
        for number, (importances, anchors) in enumerate(terms):
            for name, importance in importances.items():
                # not saved: they are in the memory of the stream
                for kind, tensor in (("importance", importance), ("anchor", anchors[name])):
                    key = buffer_name(kind, str(number), name)
                    self.register_buffer(key, tensor, persistent=False)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss: Tensor = self.task(batch)
        penalty = self.penalty()
        self.scalars = {**self.scalars, "penalty": penalty.detach()}
        return loss + penalty

    def penalty(self) -> Float[Tensor, ""]:
        """Return the penalty of the current weights."""
        total = torch.zeros((), device=self.device)
        for name, weight in self.task.net.named_parameters():
            for importance, anchor in self.terms(name):
                total = total + (importance * (weight - anchor) ** 2).sum()
        return self.strength / 2 * total

    def penalty_gradient(self, name: str, weight: Tensor) -> Tensor:
        """Return the gradient of the penalty with respect to a weight, at that value."""
        gradient = torch.zeros_like(weight)
        for importance, anchor in self.terms(name):
            gradient += self.strength * importance * (weight - anchor)
        return gradient

    def terms(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return the importances and anchors of the weight of that name."""
        pairs = []
        for number in range(self.num_terms):
            importance = self._buffers.get(buffer_name("importance", str(number), name))
            anchor = self._buffers.get(buffer_name("anchor", str(number), name))
            if importance is not None and anchor is not None:
                pairs.append((importance, anchor))
        return pairs
