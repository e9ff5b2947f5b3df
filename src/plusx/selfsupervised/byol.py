"""BYOL: predicting a teacher's projection of the other view."""

from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.selfsupervised.losses import squared_distance, swapped
from plusx.selfsupervised.method import Teacher, TwoViews, embedding_width, mlp
from plusx.tasks.task import Task


class Byol(TwoViews):
    """BYOL (Grill et al. 2020): from each view, a predictor regresses the projection of the other
    one by a teacher, whose weights are an exponential moving average of the network's.

    momentum: of the teacher; constant, where the paper raises it from 0.996 to 1
    hidden, width: of projector and predictor, two linear layers with batch norm between them
    """

    has_teacher = True

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        momentum: float = 0.99,
        hidden: int = 512,
        width: int = 128,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, width)
        super().__init__(task, modality, projector, width)
        self.predictor = mlp(width, hidden, width)
        self.teacher = Teacher(self.net, self.projector, momentum)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of the losses of both directions (equation 2 and the text below it)."""
        z = self.project(batch.inputs)
        self.observe(z)
        return 2 * squared_distance(self.predictor(z), swapped(self.teacher(batch.inputs)))

    def after_step(self) -> None:
        super().after_step()
        self.teacher.follow(self.net, self.projector)
