"""SimCLR and its supervised variant: the other view of an image among all views of a batch."""

from jaxtyping import Float
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.errors import UserError
from plusx.selfsupervised.losses import nt_xent, supervised_contrastive
from plusx.selfsupervised.method import TwoViews, embedding_width, mlp
from plusx.tasks.task import Task


class SimClr(TwoViews):
    """SimCLR (Chen et al. 2020).

    temperature: divides the cosines
    hidden, width: of the projector, two linear layers with batch norm between them
    """

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        temperature: float = 0.5,
        hidden: int = 512,
        width: int = 128,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, width)
        super().__init__(task, modality, projector, width)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        z = self.project(batch.inputs)
        self.observe(z)
        return nt_xent(z, self.temperature)


class SupCon(TwoViews):
    """Supervised contrastive learning (Khosla et al. 2020): all views of a class are positives.

    temperature: divides the cosines
    hidden, width: of the projector, two linear layers without batch norm
    """

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        temperature: float = 0.1,
        hidden: int = 512,
        width: int = 128,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, width, norm=False)
        super().__init__(task, modality, projector, width)
        self.temperature = temperature

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        if batch.targets is None or batch.targets.ndim != 1:
            raise UserError("supcon needs one class per input: the batch has no labels")
        z = self.project(batch.inputs)
        self.observe(z)
        return supervised_contrastive(z, batch.targets, self.temperature)
