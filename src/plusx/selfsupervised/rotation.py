"""Prediction of rotations."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.errors import UserError
from plusx.selfsupervised.method import SelfSupervised, embedding_width
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task


class Rotation(SelfSupervised):
    """By which of 0, 90, 180 and 270 degrees is an image rotated? (Gidaris et al. 2018.)

    A batch has all four rotations of each of its images. After each forward `scalars["error"]` is
    the error rate. Raises UserError for inputs that are not square images.
    """

    views = 1

    def __init__(self, task: Task, modality: Modality) -> None:
        super().__init__(task, modality)
        if not modality.is_image or len(set(modality.size)) != 1:
            size = " x ".join(map(str, modality.size))
            raise UserError(f"for square images, not {modality.inputs} of {size}")
        self.rotation = nn.Linear(embedding_width(task), 4)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        inputs = torch.cat([batch.inputs.rot90(turns, (-2, -1)) for turns in range(4)])
        turns = torch.arange(4, device=inputs.device).repeat_interleave(len(batch))
        logits = at_least_float32(self.rotation(self.embed(inputs)))
        self.scalars = {"error": (logits.detach().argmax(1) != turns).float().mean()}
        return F.cross_entropy(logits, turns)
