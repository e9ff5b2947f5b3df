"""Projected gradient ascent of the loss of any task, such as of masks and boxes."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from plusx.attack.attack import Attack
from plusx.attack.ball import Ball
from plusx.attack.pgd import ascend, step_length
from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Perturbs a batch so that the loss of a task rises.

    All samples take all steps. Padding around the content of an input does not change. The task is
    used in its current mode; gradients of its parameters are neither computed nor changed.

    random_start: begin at a random perturbation in the ball, not at the input
    """

    ball: Ball
    steps: int
    step_size: float
    random_start: bool = True

    @classmethod
    def of(cls, attack: Attack) -> "Ascent":
        """Return the ascent of PGD, or with one step of FGSM."""
        if attack.steps == 1:
            return cls(ball=attack.ball, steps=1, step_size=attack.eps, random_start=False)
        length = step_length(attack.ball, attack.steps, None)
        return cls(ball=attack.ball, steps=attack.steps, step_size=length)

    def __call__(
        self, task: Task, batch: Batch, modality: Modality, rng: Generator | None = None
    ) -> Batch:
        """Return the batch with perturbed inputs; values without a perturbation are unchanged."""
        inputs = batch.inputs.detach()
        clean = modality.to_pixels(inputs)
        is_content = content(batch)
        start = clean
        if self.random_start:
            start = torch.where(is_content, self.ball.random(clean, rng), clean)

        def loss_of(pixels: Tensor) -> Tensor:
            moved = torch.where(is_content, modality.from_pixels(pixels), inputs)
            loss: Tensor = task(replace(batch, inputs=moved))
            return loss

        perturbed = ascend(loss_of, clean, start, self.ball, self.steps, self.step_size)
        is_changed = (perturbed != clean) & is_content
        moved = torch.where(is_changed, modality.from_pixels(perturbed), inputs)
        return replace(batch, inputs=moved)


def content(batch: Batch) -> Bool[Tensor, "..."]:
    """Return where a batch has content, and not padding: broadcast against its inputs."""
    inputs = batch.inputs
    if "content_size" not in batch.extras:
        return torch.ones((1,) * inputs.ndim, dtype=torch.bool, device=inputs.device)
    sizes = batch.extras["content_size"].to(inputs.device)
    rows = torch.arange(inputs.shape[2], device=inputs.device)[None, :] < sizes[:, :1]
    columns = torch.arange(inputs.shape[3], device=inputs.device)[None, :] < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]
