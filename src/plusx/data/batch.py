"""A batch: inputs and targets, the only thing a task ever sees of the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from types import MappingProxyType

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from plusx.errors import UserError


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of n samples.

    Targets depend on the task:

    class numbers (n,) as int64; for several labels a sample and for mixed batches one probability
        a class (n, k) as float32;
    the class of every position (n, *s) as uint8, where 255 is ignored;
    boxes (n, m, 6) as float32: left, top, right, bottom in pixels of the input, class, and crowd
        (1 or 0). Every image has at least one row; rows of class -1 stand for no box.

    `targets` is None where nothing is known, as in prediction. `lengths` says how much of a padded
    sequence is input. `extras` are more tensors whose first dimension is the batch:

    masks         (n, m, h, w) uint8, the instance masks of the boxes: 1 inside, 0 outside;
    scale         (n,) float32, pixels of the input per pixel of the stored image;
    content_size  (n, 2) int64, height and width of the image within the padded input;
    stored_size   (n, 2) int64, height and width of the image as it is stored.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."] | None = None
    lengths: Int[Tensor, "n"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def known_targets(self) -> Shaped[Tensor, "n ..."]:
        """The targets of a batch that is trained on or evaluated."""
        assert self.targets is not None, "the batch has no targets"
        return self.targets

    def to(self, device: str | torch.device, channels_last: bool = False) -> "Batch":
        """The batch on another device; `channels_last` lays images and volumes out that way."""
        inputs = self.inputs
        if channels_last and inputs.ndim in (4, 5):
            layout = torch.channels_last if inputs.ndim == 4 else torch.channels_last_3d
            inputs = inputs.to(device, non_blocking=True, memory_format=layout)
        else:
            inputs = inputs.to(device, non_blocking=True)
        targets, lengths = (
            None if tensor is None else tensor.to(device, non_blocking=True)
            for tensor in (self.targets, self.lengths)
        )
        extras = {
            name: tensor.to(device, non_blocking=True) for name, tensor in self.extras.items()
        }
        return Batch(inputs, targets, lengths, extras)

    def pin(self) -> "Batch":
        """The batch in pinned memory, from which copies to a GPU overlap with computation."""
        return replace(
            self,
            inputs=self.inputs.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
            lengths=None if self.lengths is None else self.lengths.pin_memory(),
            extras={name: tensor.pin_memory() for name, tensor in self.extras.items()},
        )

    def split(self, count: int) -> "list[Batch]":
        """At most `count` batches of nearly equal length, in order, none of them empty."""
        if count < 1:
            raise UserError(f"a batch can be split into 1 part or more, not {count}")
        count = min(count, len(self))
        targets, lengths = (
            repeat(None) if tensor is None else tensor.tensor_split(count)
            for tensor in (self.targets, self.lengths)
        )
        extras = {name: tensor.tensor_split(count) for name, tensor in self.extras.items()}
        return [
            Batch(*tensors, {name: chunks[index] for name, chunks in extras.items()})
            for index, tensors in enumerate(
                zip(self.inputs.tensor_split(count), targets, lengths, strict=False)
            )
        ]


def class_shares(targets: Tensor, num_classes: int) -> Float[Tensor, "n k"]:
    """Targets as one probability a class (n, k): class numbers become one-hot rows."""
    if targets.ndim == 2:
        return targets.to(torch.float32)
    return torch.nn.functional.one_hot(targets, num_classes).to(torch.float32)
