"""SimSiam: predicting the network's own projection of the other view."""

from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.selfsupervised.losses import negative_cosine, swapped
from plusx.selfsupervised.method import TwoViews, embedding_width, mlp
from plusx.tasks.task import Task


class SimSiam(TwoViews):
    """SimSiam (Chen and He 2021, algorithm 1).

    stop_gradient: without it the projections of all images become the same (section 4.1)
    hidden, width: of the projector, three linear layers with batch norm, also of its output
    bottleneck: width between the two linear layers of the predictor
    """

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        stop_gradient: bool = True,
        hidden: int = 512,
        width: int = 512,
        bottleneck: int = 128,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, hidden, width, last_norm=True)
        super().__init__(task, modality, projector, width)
        self.predictor = mlp(width, bottleneck, width)
        self.stop_gradient = stop_gradient

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        z = self.project(batch.inputs)
        self.observe(z)
        targets = swapped(z.detach() if self.stop_gradient else z)
        return negative_cosine(self.predictor(z), targets)
