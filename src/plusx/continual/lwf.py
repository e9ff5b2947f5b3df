"""Learning without forgetting: distillation from the network before the task, on the new data."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from plusx.continual.distillation import WithOldNetwork, distillation_loss
from plusx.continual.method import Memory, Method, Position
from plusx.data.batch import Batch
from plusx.tasks.task import Task, forward_pass


class Distilled(WithOldNetwork):
    """The loss of a task, plus `weight` times the distillation loss of groups of classes, at the
    same inputs of the network. After each forward `scalars["distillation"]` is that loss."""

    def __init__(
        self, task: Task, weight: float, temperature: float, groups: Sequence[Sequence[int]]
    ) -> None:
        super().__init__(task)
        self.weight, self.temperature, self.groups = weight, temperature, groups

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        loss, inputs, logits = forward_pass(self.task, batch)
        old = self.old_logits(batch, inputs)
        distillation = distillation_loss(logits.float(), old, self.temperature, self.groups)
        self.scalars = {**self.scalars, "distillation": distillation.detach()}
        return loss + self.weight * distillation


@dataclass(frozen=True)
class Lwf(Method):
    """New data, and the old network's predictions for it (Li and Hoiem 2016).

    With new classes, the predictions among the earlier classes are distilled: of all earlier tasks
    together, or if the task of an input is given, of each earlier task.
    """

    weight: float
    temperature: float

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        if position.task == 0:
            return task
        groups: Sequence[Sequence[int]] = {
            "class": (position.earlier,),
            "task": position.classes[: position.task],
            "domain": (position.current,),
        }[position.scenario]
        return Distilled(task, self.weight, self.temperature, groups)
