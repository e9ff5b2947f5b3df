"""Barlow Twins: projections whose elements agree between views and differ among each other."""

from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.selfsupervised.losses import redundancy
from plusx.selfsupervised.method import TwoViews, embedding_width, mlp
from plusx.tasks.task import Task


class BarlowTwins(TwoViews):
    """Barlow Twins (Zbontar et al. 2021).

    redundancy: the weight of off-diagonal elements, lambda of equation 1
    hidden, width: of the projector, three linear layers with batch norm between them
    """

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        redundancy: float = 0.005,
        hidden: int = 512,
        width: int = 512,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, hidden, width)
        super().__init__(task, modality, projector, width)
        self.redundancy = redundancy

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        z = self.project(batch.inputs)
        self.observe(z)
        return redundancy(z[0::2], z[1::2], self.redundancy)
