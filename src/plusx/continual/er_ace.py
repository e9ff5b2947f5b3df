"""ER-ACE: replay with an asymmetric cross-entropy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plusx.continual.method import Memory, Position
from plusx.continual.replay import Replay
from plusx.continual.restricted import refuse_smoothing, restricted
from plusx.data.batch import Batch
from plusx.tasks.task import Task, Wrapped


class Asymmetric(Wrapped):
    """A task in which new samples compete among the classes of the current task only, and replayed
    ones among all classes so far, so that new classes do not push the earlier ones down (Caccia et
    al. 2022, equation 3).

    In the paper the buffer is filled during the task, so that some replayed samples are of its
    classes. Here the buffer has earlier tasks only. The first new samples of a batch, as many per
    class as replayed ones, therefore compete among all classes so far too.
    """

    def __init__(self, task: Task, position: Position) -> None:
        super().__init__(task)
        refuse_smoothing(task)
        self.position = position

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        targets, position = batch.known_targets, self.position
        new, so_far = (
            _chosen(classes, position.num_classes).to(targets.device)
            for classes in (position.current, position.so_far)
        )
        if targets.ndim == 1:
            is_new = new[targets]
        else:  # of mixed samples, those without an earlier class
            is_new = ~(targets[:, ~new] > 0).any(1)
        earlier = len(position.so_far) - len(position.current)
        if earlier:
            count = round(int((~is_new).sum()) * len(position.current) / earlier)
            is_new &= is_new.cumsum(0) > count
        allowed = torch.where(is_new[:, None], new, so_far)
        with restricted(self.task.net, allowed):
            loss: Tensor = self.task(batch)
        return loss


def _chosen(classes: Sequence[int], num_classes: int) -> Bool[Tensor, "k"]:
    chosen = torch.zeros(num_classes, dtype=torch.bool)
    chosen[list(classes)] = True
    return chosen


@dataclass(frozen=True)
class ErAce(Replay):
    """Replay with the asymmetric cross-entropy (Caccia et al. 2022)."""

    scenarios = ("class",)
    why = "new samples compete among the classes of their task anyway"

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        return Asymmetric(task, position)
