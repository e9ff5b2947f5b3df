"""`Modality`: the size, channels and normalisation that all kinds of input share."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float32, Num
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from plusx.data.buffer_pool import BufferPool
from plusx.data.image_file import DEFAULT_LIMIT, Decoder, Verdict, decoders, printable
from plusx.data.modality.space import Space
from plusx.data.sample import Input
from plusx.data.transforms.transform import Transform
from plusx.errors import UserError


# raised whenever the rules of decoding change, so that old verdicts count no more
_RULES = 4
MAX_SIDE = 16_384  # pixels of an input
# pixels that are normalised at a time: 1 MiB of them
_PIECE = 2**18


@dataclass(frozen=True)
class Modality:
    """How stored values become a network's input.

    size: height and width of the network's input, of volumes those of a patch's slice
    mean, std: one number per channel, on a scale where the stored value `low` is 0 and `high` is 1;
        8-bit images have 0 and 255
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: int | float = 0
    high: int | float = 255

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    kind: ClassVar[str]
    inputs: ClassVar[str]  # what its samples are called in messages
    words: ClassVar[Collection[str]]  # of augmentation
    # samples that are evaluated at a time; None: as many as are asked for
    most_at_a_time: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE:
            raise UserError(f"size {self.size}: sides are from 1 to {MAX_SIDE:,} pixels")
        if self.channels < 1:
            raise UserError(f"channels {self.channels}: inputs have 1 channel or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(f"{name} has {len(values)} numbers for {self.channels} channels")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std {self.std}: every number must be above 0")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"range {self.low} to {self.high}: from a lower number to a higher one")

    def read_file(self, path: str, decoder: Decoder = "pillow") -> Input:
        """Read a file. Raises UnreadableImage with the reason; OSError."""
        raise NotImplementedError

    def decode(self, source: str | bytes) -> Input:
        """Read and fully check a file. Raises UnreadableImage with the reason; OSError."""
        raise UserError(f"{self.inputs} are read one by one, and not as bytes or arrays")

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        """What is done to samples.

        annotated: whether boxes or masks go along
        stored: whether all inputs are stored at the network's size
        Raises UserError for an augmentation that these inputs cannot have.
        """
        raise NotImplementedError

    def verdict_terms(self) -> list[Any]:
        """Return what the verdict on a file depends on, besides the file."""
        return [_RULES, DEFAULT_LIMIT, *decoders()]

    def examine(self, source: str | bytes) -> Verdict:
        """Decode a file fully, and return the verdict."""
        raise NotImplementedError

    def verdict_of(self, value: Input) -> Verdict:
        """Return the verdict on a decoded input."""
        return Verdict(None)

    def refuse_archive(self, path: str) -> None:
        """Raise UserError if packed and tar files cannot contain these inputs."""
        raise UserError(
            f"{printable(path)} holds images of 8 bits; {self.inputs} are files of their own"
        )

    def common_problem(self, verdicts: Sequence[Verdict]) -> str | None:
        """Return a problem of all files together, although each is usable, or None."""
        return None

    @property
    def varies(self) -> bool:
        """Whether inputs keep their sizes, so that batches are padded."""
        return False

    def of_one_size(self) -> "Modality":
        """Return the modality with inputs resized to the network's size."""
        return self

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return 2

    @property
    def grid(self) -> Space | None:
        """The grid of volumes; None for images."""
        return None

    def input_steps(self, dense: bool) -> list[dict[str, Any]]:
        """The steps from a stored input to that of the network, in order, for other programs.

        dense: whether the network predicts positions, so that the whole input is kept
        """
        return [
            *self.resize_steps(dense),
            {"step": "scale", "low": self.low, "high": self.high},
            {"step": "normalise", "mean": list(self.mean), "std": list(self.std)},
        ]

    def resize_steps(self, dense: bool) -> list[dict[str, Any]]:
        """Return the steps that resize a stored input to the network's size."""
        return [resize_step("stretch", self.size)]

    def normalise(
        self, values: Num[Tensor, "..."], pool: BufferPool | None = None
    ) -> Float32[Tensor, "..."]:
        """((value - low) / (high - low) - mean) / std in float32.

        Of 8 bits that is (image / 255 - mean) / std, bit for bit as torchvision's v2 transforms.
        pool: where memory for many images comes from; None is the system.
        """
        mean = torch.tensor(self.mean, dtype=torch.float32, device=values.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=values.device)
        many = values.ndim == 4 and self.ndim == 2 and values.numel() > 2 * _PIECE
        if many and values.device.type == "cpu":
            return _normalise_in_pieces(values, mean, std, self.low, self.high, pool)
        scaled = _to_unit_range(values.to(torch.float32, copy=True), self.low, self.high)
        sides = (1,) * self.ndim
        return scaled.sub_(mean.view(-1, *sides)).div_(std.view(-1, *sides))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `kind` is the modality's name."""
        values = TypeAdapter(type(self)).dump_python(self, mode="json", exclude_none=True)
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Modality":
        """The inverse of `to_dict`, without `kind`. Raises UserError for invalid keys."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            reasons = [
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".lstrip(": ")
                for problem in error.errors(include_url=False)
            ]
            raise UserError(f"preprocessing of kind {cls.kind!r}: {'; '.join(reasons)}") from None


def resize_step(mode: str, size: Sequence[int], interpolation: str = "bilinear") -> dict[str, Any]:
    """Return a resize for the metadata of an exported file."""
    return {
        "step": "resize",
        "mode": mode,
        "size": list(size),
        "interpolation": interpolation,
        "antialias": True,
    }


def _to_unit_range(values: Tensor, low: int | float, high: int | float) -> Tensor:
    """Scale values in place so that low becomes 0 and high becomes 1."""
    if low:
        values = values.sub_(low)
    return values.mul_(1.0 / (high - low))


def _normalise_in_pieces(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    low: int | float,
    high: int | float,
    pool: BufferPool | None,
) -> Tensor:
    """Normalise a few images at a time, so that they stay in the processor's cache.

    The memory format of the images is kept.
    """
    pool = pool or BufferPool()
    count, channels, height, width = images.shape
    channels_last = channels > 1 and images.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        # one long row of channels is quicker than many rows of three
        output = torch.from_numpy(pool.take((count, height, width, channels)))
        rows, stored = output.view(-1, width * channels), images.permute(0, 2, 3, 1)
        stored = stored.reshape(-1, width * channels)
        mean, std = mean.repeat(width), std.repeat(width)
        step = max(1, _PIECE // rows.shape[1])
    else:
        output = torch.from_numpy(pool.take((count, channels, height, width)))
        rows, stored = output, images
        mean, std = mean[:, None, None], std[:, None, None]
        step = max(1, _PIECE // (channels * height * width))
    for target, source in zip(rows.split(step), stored.split(step)):
        _to_unit_range(target.copy_(source), low, high).sub_(mean).div_(std)
    return output.permute(0, 3, 1, 2) if channels_last else output
