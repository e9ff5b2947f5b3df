"""Classifiers of one make, asked together."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.nn.network import Network
from plusx.nn.together import Together
from plusx.tasks.classify import Classify
from plusx.tasks.task import Task


class ClassifyTogether(nn.Module):
    """K classifiers whose networks run as one; `net` is all of them (see plusx.nn.together).

    UserError: a task is no classifier in float32 of a network that a spec says, or the networks
    cannot be put together.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks: list[Classify] = []  # no submodules: their parameters are those of `net`
        nets = []
        for task in tasks:
            if not isinstance(task, Classify) or not isinstance(task.net, Network):
                raise UserError(
                    "only classifiers in float32 whose network is a spec train together"
                )
            self.tasks.append(task)
            nets.append(task.net)
        self.net = Together(nets)

    def forward(self, batches: Sequence[Batch]) -> list[Float[Tensor, ""]]:
        """The loss of each on its own batch; each has `seen` it as if it were alone."""
        answers = self.net([batch.inputs for batch in batches])
        return [
            task.loss(logits, batch.targets)
            for task, logits, batch in zip(self.tasks, answers, batches, strict=True)
        ]
