"""A batch: inputs and targets, the only thing a task ever sees of the data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from plusx.errors import UserError


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of n samples.

    Targets are, by the task,

    class numbers (n,) as int64; for several labels a sample and for mixed batches one number a
        class (n, k) as float32;
    the class of every position (n, *s) as uint8, where 255 is not judged;
    boxes (n, m, 7) as float32: left, top, right, bottom in pixels of the input, class, crowd (1
        or 0), and scale, the pixels of the input a pixel of the image as it is stored. Every
        image has at least one row, and rows that stand for no box have class -1.

    `masks` are those of boxes that have some: 1 within, 0 without.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]
    masks: UInt8[Tensor, "n m h w"] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def truth(self) -> tuple[Tensor, ...]:
        """What predictions are compared with: the targets, and masks where there are some."""
        return (self.targets,) if self.masks is None else (self.targets, self.masks)

    def to(self, device: str | torch.device, channels_last: bool = False) -> "Batch":
        """The batch on another device; `channels_last` lays images and volumes out that way."""
        inputs = self.inputs
        if channels_last and inputs.ndim in (4, 5):
            layout = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
            inputs = inputs.to(device, non_blocking=True, memory_format=layout)
        else:
            inputs = inputs.to(device, non_blocking=True)
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return type(self)(inputs, self.targets.to(device, non_blocking=True), masks)

    def split(self, parts: int) -> "list[Batch]":
        """At most `parts` batches of nearly equal length, in order, none of them empty."""
        if parts < 1:
            raise UserError(f"a batch can be split into 1 part or more, not {parts}")
        parts = min(parts, len(self))
        inputs, targets = self.inputs.tensor_split(parts), self.targets.tensor_split(parts)
        masks = [None] * parts if self.masks is None else self.masks.tensor_split(parts)
        return [type(self)(*part) for part in zip(inputs, targets, masks)]


def class_shares(targets: Tensor, num_classes: int) -> Float[Tensor, "n k"]:
    """Targets as one number a class (n, k): class numbers become one-hot rows."""
    if targets.ndim == 2:
        return targets.to(torch.float32)
    return torch.nn.functional.one_hot(targets, num_classes).to(torch.float32)
