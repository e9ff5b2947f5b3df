"""`Batch`, the only form in which tasks get data, and the collation of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, Num, Shaped, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plusx.data.sample import IGNORE_INDEX, Sample
from plusx.data.transforms.steps import Size
from plusx.data.transforms.transform import Transform
from plusx.errors import UserError


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of n samples.

    Targets depend on the task:

    class numbers (n,) int64; for several labels per sample and mixed batches the probability of
        each class (n, k) float32;
    the class of every position (n, *s) uint8, where 255 is ignored;
    sequences of token numbers (n, u) int64; -1 is padding, and `target_lengths` counts the others;
    boxes (n, m, 6) float32: left, top, right, bottom in pixels of the input, class, and crowd (1 or
        0). Every image has at least one row; rows of class -1 are padding.

    `targets` is None if it is unknown, as in prediction. `lengths` (n,) int64 are those of padded
    sequences, along the last dimension of the inputs. `extras` are other tensors whose first
    dimension is the batch:

    target_lengths (n,) int64, the lengths of sequences of targets;
    masks         (n, m, h, w) uint8, the instance masks of the boxes: 1 inside, 0 outside;
    scale         (n,) float32, pixels of the input per pixel of the stored image;
    content_size  (n, 2) int64, height and width of the image within the padded input;
    stored_size   (n, 2) int64, height and width of the image as stored.
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."] | None = None
    lengths: Int[Tensor, "n"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def known_targets(self) -> Shaped[Tensor, "n ..."]:
        """The targets, which must not be None."""
        assert self.targets is not None, "the batch has no targets"
        return self.targets

    def to(self, device: str | torch.device, channels_last: bool = False) -> "Batch":
        """Return the batch on another device; `channels_last` applies to images and volumes."""
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
        """Return the batch in pinned memory, for asynchronous copies to a GPU."""
        return replace(
            self,
            inputs=self.inputs.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
            lengths=None if self.lengths is None else self.lengths.pin_memory(),
            extras={name: tensor.pin_memory() for name, tensor in self.extras.items()},
        )

    def split(self, count: int) -> "list[Batch]":
        """Split into at most `count` non-empty batches of nearly equal length."""
        if count < 1:
            raise UserError(f"a batch can be split into at least 1 part, not {count}")
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
    """Return targets as class probabilities (n, k); class numbers become one-hot rows."""
    if targets.ndim == 2:
        return targets.to(torch.float32)
    return torch.nn.functional.one_hot(targets, num_classes).to(torch.float32)


# a batch without a fixed size has that of its largest image, rounded up to a multiple of this, the
# largest stride of the networks
MULTIPLE = 32


class Collated(NamedTuple):
    """A batch with inputs that are not yet normalised; or an error message.

    extras, lengths: those of a Batch
    """

    inputs: Num[Tensor, "n ..."]
    targets: Tensor | None
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    error: str = ""
    lengths: Int64[Tensor, "n"] | None = None

    def batch(self, inputs: Num[Tensor, "n ..."], device: torch.device) -> Batch:
        """Return the batch with these normalised inputs and zero padding, on a device."""
        if "content_size" in self.extras:
            blank_padding(inputs, self.extras["content_size"])
        return Batch(inputs, self.targets, self.lengths, self.extras).to(device)


def blank_padding(inputs: Float32[Tensor, "n c h w"], sizes: Int64[Tensor, "n 2"]) -> None:
    """Set the padding to 0 in place."""
    height, width = inputs.shape[2:]
    for image, (tall, wide) in zip(inputs, sizes.tolist()):
        if tall < height:
            image[:, tall:] = 0
        if wide < width:
            image[:, :, wide:] = 0


def covering_size(sizes: Sequence[Size]) -> tuple[int, int]:
    """Return the smallest height and width, multiples of MULTIPLE, that cover all sizes."""
    tall, wide = (max(size[side] for size in sizes) for side in (0, 1))
    return -(-tall // MULTIPLE) * MULTIPLE, -(-wide // MULTIPLE) * MULTIPLE


def collate(samples: Sequence[Sample], transform: Transform) -> Collated:
    """Collate transformed samples into one batch."""
    inputs = [sample.tensor for sample in samples]
    if not transform.annotated:
        stacked = _stacked(inputs, transform.setting.channels_last)
        return Collated(stacked, *collate_targets(samples))
    if inputs[0].ndim == 4:
        return Collated(torch.stack(inputs), _class_planes(samples, inputs[0].shape[1:]))
    size = transform.final or covering_size([sample.size for sample in samples])
    padded = inputs[0].new_zeros((len(samples), len(inputs[0]), *size))
    for target, image in zip(padded, inputs):
        target[:, : image.shape[1], : image.shape[2]] = image
    extras = {
        "scale": torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        "content_size": torch.tensor([sample.size for sample in samples], dtype=torch.int64),
        "stored_size": torch.tensor([sample.stored_size for sample in samples], dtype=torch.int64),
    }
    if samples[0].has_instance_masks:
        extras["masks"] = _instance_masks(samples, size)
    targets: Tensor | None
    if samples[0].boxes is not None:
        targets = _boxes(samples)
    elif samples[0].masks is not None:
        targets = _class_planes(samples, size)
    else:
        targets, lengths = collate_targets(samples)
        extras |= lengths
    return Collated(padded, targets, extras)


def collate_sequences(samples: Sequence[Sample], padding: int | float) -> Collated:
    """Collate transformed samples that differ in the length of their last dimension."""
    inputs = [sample.tensor for sample in samples]
    lengths = torch.tensor([values.shape[-1] for values in inputs])
    longest = int(lengths.max())
    padded = inputs[0].new_full((len(inputs), *inputs[0].shape[:-1], longest), padding)
    for row, values in zip(padded, inputs):
        row[..., : values.shape[-1]] = values
    return Collated(padded, *collate_targets(samples), lengths=lengths)


def collate_targets(samples: Sequence[Sample]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the targets of classes or of sequences of tokens, and the lengths of the latter."""
    if samples[0].target is None:
        return None, {}
    targets = [torch.as_tensor(sample.target) for sample in samples]
    if targets[0].ndim == 0 or targets[0].is_floating_point():
        return torch.stack(targets), {}
    lengths = torch.tensor([len(target) for target in targets])
    return pad_sequence(targets, batch_first=True, padding_value=-1), {"target_lengths": lengths}


def _stacked(inputs: Sequence[Tensor], channels_last: bool) -> Tensor:
    if channels_last and inputs[0].dtype == torch.uint8:
        return torch.stack([image.permute(1, 2, 0) for image in inputs]).permute(0, 3, 1, 2)
    return torch.stack(list(inputs))


def _class_planes(samples: Sequence[Sample], size: Size) -> UInt8[Tensor, "n *s"]:
    planes = torch.full((len(samples), *size), IGNORE_INDEX, dtype=torch.uint8)
    for plane, sample in zip(planes, samples):
        assert sample.masks is not None
        window = tuple(slice(0, side) for side in sample.size)
        plane[window] = torch.as_tensor(sample.masks[0])
    return planes


def _boxes(samples: Sequence[Sample]) -> Float32[Tensor, "n m 6"]:
    counts = [0 if sample.boxes is None else len(sample.boxes) for sample in samples]
    boxes = np.zeros((len(samples), max(1, *counts), 6), np.float32)
    boxes[:, :, 4] = -1
    for rows, sample, count in zip(boxes, samples, counts):
        rows[:count] = sample.boxes
    return torch.from_numpy(boxes)


def _instance_masks(samples: Sequence[Sample], size: Size) -> UInt8[Tensor, "n m h w"]:
    counts = [0 if sample.masks is None else len(sample.masks) for sample in samples]
    masks = torch.zeros((len(samples), max(1, *counts), *size), dtype=torch.uint8)
    for planes, sample, count in zip(masks, samples, counts):
        planes[:count, : sample.size[0], : sample.size[1]] = torch.as_tensor(sample.masks)
    return masks
