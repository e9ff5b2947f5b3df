"""MoCo v2: the other view of an image among a queue of earlier ones."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.selfsupervised.losses import info_nce
from plusx.selfsupervised.method import Teacher, TwoViews, embedding_width, mlp
from plusx.tasks.task import Task


class MoCo(TwoViews):
    """MoCo (He et al. 2020) with the projector of its version 2 (Chen et al. 2020).

    The first view of an image is the query. A teacher, whose weights are an exponential moving
    average of the network's, computes the keys: that of the second view, and those of earlier
    batches in a queue.

    temperature: divides the cosines
    momentum: of the teacher
    queue: number of keys in it; at the start they are random
    hidden, width: of the projector, two linear layers without batch norm
    """

    has_teacher = True
    has_queue = True
    queue: Tensor
    position: Tensor

    def __init__(
        self,
        task: Task,
        modality: Modality,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 1024,
        hidden: int = 512,
        width: int = 128,
    ) -> None:
        projector = mlp(embedding_width(task), hidden, width, norm=False)
        super().__init__(task, modality, projector, width)
        self.teacher = Teacher(self.net, self.projector, momentum)
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.keys: Tensor | None = None  # of the latest batch, not yet in the queue

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        queries = self.project(batch.inputs[0::2])
        self.observe(queries)
        self.keys = F.normalize(self.teacher(batch.inputs[1::2]).float(), dim=1)
        return info_nce(queries, self.keys, self.queue, self.temperature)

    def after_step(self) -> None:
        """Update the teacher, and replace the oldest keys by those of the batch."""
        super().after_step()
        self.teacher.follow(self.net, self.projector)
        if self.keys is not None:
            size = len(self.queue)
            keys = self.keys[-size:]
            indices = (self.position + torch.arange(len(keys), device=keys.device)) % size
            self.queue[indices] = keys
            self.position.copy_((self.position + len(keys)) % size)
            self.keys = None
