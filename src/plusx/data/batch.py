"""A batch: inputs and targets, the only thing a task ever sees of the data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of n samples.

    Targets are class numbers (n,) as int64, or, for several labels a sample and for mixed
    batches, one number a class (n, k) as float32.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: str | torch.device, channels_last: bool = False) -> "Batch":
        """The batch on another device; `channels_last` lays images and volumes out that way."""
        inputs = self.inputs
        if channels_last and inputs.ndim in (4, 5):
            layout = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
            inputs = inputs.to(device, non_blocking=True, memory_format=layout)
        else:
            inputs = inputs.to(device, non_blocking=True)
        return type(self)(inputs, self.targets.to(device, non_blocking=True))

    def split(self, parts: int) -> "list[Batch]":
        """At most `parts` batches of nearly equal length, in order, none of them empty."""
        if parts < 1:
            raise ValueError(f"a batch can be split into 1 part or more, not {parts}")
        parts = min(parts, len(self))
        pairs = zip(self.inputs.tensor_split(parts), self.targets.tensor_split(parts))
        return [type(self)(inputs, targets) for inputs, targets in pairs]


def class_shares(targets: Tensor, num_classes: int) -> Float[Tensor, "n k"]:
    """Targets as one number a class (n, k): class numbers become one-hot rows."""
    if targets.ndim == 2:
        return targets.to(torch.float32)
    return torch.nn.functional.one_hot(targets, num_classes).to(torch.float32)
