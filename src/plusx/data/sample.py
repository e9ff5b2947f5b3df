"""What a set of labelled images is: Preprocessing, Sample and Source."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64, Num
from PIL import Image
from torch import Tensor

from plusx.data.image import DEFAULT_LIMIT, Decoder, Picture, printable
from plusx.data.packed import Packed
from plusx.data.shards import Shards
from plusx.data.space import Space
from plusx.data.spare import Spare
from plusx.data.tiff import fitted, read_bands
from plusx.data.truth import Masks, Truth
from plusx.data.volumes import Volumes
from plusx.errors import UserError


Split = Literal["train", "validation", "test", "all"]
Labels = Int64[Tensor, "n"] | Float32[Tensor, "n k"]

# bytes read at each end of a file for its fingerprint
_SAMPLED = 16384
# pixels that are normalised at a time: 1 MiB of them
_PIECE = 2**18


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input: size (height, width), channels, mean and std.

    `space` is the grid of volumes, of whose patches the size is a slice's.

    mean and std are one number a channel, on the scale on which `low`, the value of a stored
    pixel, is 0 and `high` is 1. Images of 8 bits have 0 and 255; what else has another range
    says so.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: int | float = 0
    high: int | float = 255
    space: Space | None = None
    bands: tuple[int, ...] | None = None  # of the stored ones, counted from 1; None: all

    def __post_init__(self) -> None:
        if self.space is not None and self.size != self.space.patch[1:]:
            raise UserError(f"size {self.size}: a patch has {self.space.patch}")
        if min(self.size) < 1:
            raise UserError(f"size {self.size}: a size is at least 1 x 1")
        if self.channels < 1:
            raise UserError(f"channels {self.channels}: images have 1 channel or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(f"{name} has {len(values)} numbers for {self.channels} channels")
        if not all(value > 0 for value in self.std):
            raise UserError(f"std {self.std}: every number must be above 0")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"range {self.low} to {self.high}: from a lower number to a higher one")
        if self.bands is not None and (len(self.bands) != self.channels or min(self.bands) < 1):
            raise UserError(f"bands {self.bands}: one for each of {self.channels} channels, from 1")

    @property
    def eight_bits(self) -> bool:
        """Whether stored pixels are from 0 to 255, as those of common image files are."""
        return (self.low, self.high) == (0, 255)

    @property
    def pictures(self) -> bool:
        """Whether images are grey or in colours, of 8 bits; what else there is are bands."""
        plain = self.space is None and self.bands is None
        return plain and self.channels in (1, 3) and self.eight_bits

    def normalise(
        self,
        images: Num[Tensor, "*n c h w"] | Num[Tensor, "*n c d h w"],
        spare: Spare | None = None,
    ) -> Float32[Tensor, "*n c h w"] | Float32[Tensor, "*n c d h w"]:
        """((image - low) / (high - low) - mean) / std in float32.

        Of 8 bits that is (image / 255 - mean) / std, bit for bit as torchvision's v2 transforms.
        spare: where memory for many images comes from; None is the system.
        """
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device)
        many = images.ndim == 4 and self.space is None and images.numel() > 2 * _PIECE
        if many and images.device.type == "cpu":
            return _normalised(images, mean, std, self.low, self.high, spare or Spare())
        scaled = _on_scale(images.to(torch.float32, copy=True), self.low, self.high)
        sides = (1,) * (2 if self.space is None else 3)
        return scaled.sub_(mean.view(-1, *sides)).div_(std.view(-1, *sides))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and TOML can hold."""
        return {
            "size": list(self.size),
            "channels": self.channels,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.eight_bits else {"low": self.low, "high": self.high}),
            **({} if self.bands is None else {"bands": list(self.bands)}),
            **({} if self.space is None else {"space": self.space.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The other way round. Raises UserError where a key is missing, unknown or unfit."""
        wanted, ranged = {"size", "channels", "mean", "std"}, {"low", "high"}
        space, values = values.get("space"), {k: v for k, v in values.items() if k != "space"}
        bands, values = values.get("bands"), {k: v for k, v in values.items() if k != "bands"}
        if set(values) not in (wanted, wanted | ranged):
            wrong = ", ".join(sorted(set(values) ^ (wanted | (ranged & set(values)))))
            raise UserError(
                "preprocessing has the keys size, channels, mean, std, and may have low and high "
                f"together, space and bands; not so: {wrong or 'one of low and high'}"
            )
        try:
            height, width = (int(side) for side in values["size"])
            mean = tuple(float(number) for number in values["mean"])
            std = tuple(float(number) for number in values["std"])
            low, high = float(values.get("low", 0)), float(values.get("high", 255))
            known = None if space is None else Space.from_dict(space)
            size, channels = (height, width), int(values["channels"])
            chosen = None if bands is None else tuple(int(band) for band in bands)
            return cls(size, channels, mean, std, low, high, known, chosen)
        except TypeError as error:
            raise UserError(f"preprocessing {values!r}: {error}") from None


class Sample(NamedTuple):
    """One image as it is stored, before any augmentation or scaling."""

    image: Num[Tensor, "c h w"] | Num[Tensor, "c d h w"]
    label: int | Float32[Tensor, "k"]
    path: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Labelled images, in memory (`images`) or in files (`paths`, absolute).

    Labels are class numbers (n,) int64, or for several labels a sample (n, k) float32 of 0 and 1;
    -1 stands for unknown. `notices` says what was skipped or remarked on, with the reasons.
    A path that is no UTF-8 carries Python's surrogate escapes; `printable` makes it showable.
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    labels: Labels
    preprocessing: Preprocessing
    images: Num[Tensor, "n c h w"] | None = None  # uint8, or numbers of another range
    paths: list[str] | None = None
    root: str | None = None  # paths are named relative to it in fingerprints and messages
    rows: list[int] | None = None  # of the CSV, counted from 1 with its header
    notices: list[str] = field(default_factory=list)
    limit: int = DEFAULT_LIMIT  # pixels an image may have
    decoder: Decoder = "pillow"
    # where the images of `paths` are, which are no files then
    packed: Packed | None = None
    shards: Shards | None = None
    numbers: Int64[Tensor, "n"] | None = None  # which images of the packed file these are
    # boxes or masks; labels are then float32 (n, k), 1 for every class that an image shows
    truth: Truth | None = None
    # whether scenes are brought to the size; else they stay as large as they are
    sized: bool = True

    # volumes and their masks, of which `paths`, where there are any, are the files and folders
    volumes: Volumes | None = None

    def __post_init__(self) -> None:
        if self.volumes is not None:
            assert self.images is None
            assert len(self.labels) == len(self.volumes)
            assert self.paths is None or len(self.paths) == len(self.labels)
            return
        assert (self.images is None) != (self.paths is None)
        assert len(self.labels) == len(self.images if self.images is not None else self.paths or [])
        assert self.truth is None or len(self.truth) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        label = self.labels[index] if self.multilabel else int(self.labels[index])
        if self.images is not None:
            return Sample(self.images[index], label, None)
        if self.volumes is not None:
            volume = torch.from_numpy(np.array(self.volumes.each[index].image))
            return Sample(volume, label, None if self.paths is None else self.paths[index])
        assert self.paths is not None
        known = self.preprocessing
        if not known.pictures and known.space is None:
            bands = read_bands(self.paths[index], known.channels, known.bands, self.limit)
            return Sample(fitted(bands, known.size), label, self.paths[index])
        stored = self.stored(index)
        if isinstance(stored, Picture):
            image = stored.decoded(self.preprocessing.channels, decoder=self.decoder)
            stored = np.asarray(image).reshape(image.height, image.width, -1)
        elif (
            stored.shape[2] != self.preprocessing.channels
        ):  # packed are colours, and grey is wanted
            stored = np.asarray(Image.fromarray(stored).convert("L"))[:, :, None]
        pixels = torch.from_numpy(stored.copy()).permute(2, 0, 1).contiguous()
        return Sample(pixels, label, self.paths[index])

    def stored(self, index: int) -> Picture | Num[np.ndarray, "h w c"]:
        """One image as it lies there: a file that is not decoded yet, or pixels."""
        if self.images is not None:
            return self.images[index].cpu().permute(1, 2, 0).numpy()
        if self.packed is not None:
            assert self.numbers is not None
            return self.packed.pixels(int(self.numbers[index]))
        assert self.paths is not None
        if self.shards is not None:
            return self.shards.stored(self.paths[index], self.limit)
        return Picture(self.paths[index], self.limit)

    @property
    def multilabel(self) -> bool:
        """Whether a sample can have several labels."""
        return self.labels.ndim == 2

    @property
    def in_memory(self) -> bool:
        return self.images is not None

    def subset(self, indices: Sequence[int] | Int64[Tensor, "m"]) -> "Source":
        """The samples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        listed = chosen.tolist()
        return replace(
            self,
            labels=self.labels[chosen],
            images=None if self.images is None else self.images[chosen],
            paths=None if self.paths is None else [self.paths[index] for index in listed],
            rows=None if self.rows is None else [self.rows[index] for index in listed],
            numbers=None if self.numbers is None else self.numbers[chosen],
            truth=None if self.truth is None else self.truth.subset(listed),
            volumes=None if self.volumes is None else self.volumes.subset(listed),
            notices=list(self.notices),
        )

    def to(self, device: str | torch.device) -> "Source":
        """The same set with its images, where they are in memory, on another device."""
        if self.images is None or self.truth is not None:  # scenes are made one by one
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Source":
        """The same images for a network that wants another size, mean or std."""
        if preprocessing.channels != self.preprocessing.channels and self.images is not None:
            raise UserError(
                f"{self.name} has {self.preprocessing.channels} channels, "
                f"the network wants {preprocessing.channels}"
            )
        images = self.images
        if images is not None and self.truth is None and images.shape[-2:] != preprocessing.size:
            images = resized(images, preprocessing.size)
        return replace(self, preprocessing=preprocessing, images=images)

    def check_labels(self, num_classes: int) -> None:
        """Raise UserError that names the first sample whose label no network of k outputs has."""
        if self.multilabel:
            if self.labels.shape[1] != num_classes:
                raise UserError(
                    f"{self.name} has {self.labels.shape[1]} labels, the network {num_classes}"
                )
            return
        wrong = ((self.labels < 0) | (self.labels >= num_classes)).nonzero()
        if len(wrong):
            index = int(wrong[0])
            raise UserError(
                f"{self.where(index)}: label {int(self.labels[index])} is outside "
                f"0 to {num_classes - 1}"
            )

    def position_counts(self) -> Int64[Tensor, "k"]:
        """How many positions of each class masks have. UserError: there are no masks."""
        if self.volumes is not None:
            return self.volumes.counts(len(self.classes)).sum(0)
        if not isinstance(self.truth, Masks):
            raise UserError(f"{self.name} has no masks, which say the class of each position")
        return self.truth.counts.sum(0)

    def where(self, index: int) -> str:
        """What to call a sample in a message: its path, its row, or its number."""
        if self.paths is None:
            if self.volumes is not None:
                return f"{self.name} {self.split}, {self.volumes.each[index].name}"
            return f"{self.name} {self.split}, image {index}"
        path = printable(self.paths[index], self.root)
        return path if self.rows is None else f"row {self.rows[index]} ({path})"

    def fingerprint(self) -> str:
        """A sha256 that changes with the set: its classes, labels and content.

        Images in memory are read whole; of a file its name below the root, its size, and 16 KiB at
        each end; of a packed file the digest of its contents; of tar files their indices.
        """
        digest = hashlib.sha256()
        # a folder that is renamed holds the same images
        name = self.name if self.in_memory else ""
        digest.update(repr((name, self.split, self.classes, tuple(self.labels.shape))).encode())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        if self.volumes is not None:
            digest.update(self.volumes.digest())
            return digest.hexdigest()
        if self.truth is not None:
            digest.update(self.truth.digest(self.root))
        if self.images is not None:
            digest.update(repr(tuple(self.images.shape)).encode())
            digest.update(self.images.cpu().contiguous().numpy().data)
            return digest.hexdigest()
        archive = self.packed or self.shards
        if archive is not None:
            digest.update(archive.digest.encode())
        for path in self.paths or []:
            shown = os.path.relpath(path, self.root) if self.root else path
            digest.update(os.fsencode(shown) + b"\0")
            if archive is not None:
                continue
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "little"))
                digest.update(file.read(_SAMPLED))
                if size > _SAMPLED:
                    file.seek(max(_SAMPLED, size - _SAMPLED))
                    digest.update(file.read(_SAMPLED))
        return digest.hexdigest()


def _on_scale(values: Tensor, low: int | float, high: int | float) -> Tensor:
    """Values, in place, such that low is 0 and high is 1."""
    if low:
        values = values.sub_(low)
    return values.mul_(1.0 / (high - low))


def _normalised(
    images: Tensor, mean: Tensor, std: Tensor, low: int | float, high: int | float, spare: Spare
) -> Tensor:
    """The same, a few images at a time, which the processor's cache can hold between the steps.

    Images with their channels innermost keep them there.
    """
    count, channels, height, width = images.shape
    inner = channels > 1 and images.is_contiguous(memory_format=torch.channels_last)
    if inner:
        # one long row of channels is quicker than many rows of three
        made = torch.from_numpy(spare.take((count, height, width, channels)))
        rows, stored = made.view(-1, width * channels), images.permute(0, 2, 3, 1)
        stored = stored.reshape(-1, width * channels)
        mean, std = mean.repeat(width), std.repeat(width)
        step = max(1, _PIECE // rows.shape[1])
    else:
        made = torch.from_numpy(spare.take((count, channels, height, width)))
        rows, stored = made, images
        mean, std = mean[:, None, None], std[:, None, None]
        step = max(1, _PIECE // (channels * height * width))
    for part, found in zip(rows.split(step), stored.split(step)):
        _on_scale(part.copy_(found), low, high).sub_(mean).div_(std)
    return made.permute(0, 3, 1, 2) if inner else made


def resized(images: Num[Tensor, "n c h w"], size: tuple[int, int]) -> Num[Tensor, "n c y x"]:
    """Images scaled to (height, width), bilinear with antialiasing."""
    from torchvision.transforms.v2 import functional

    return torch.cat([functional.resize(part, list(size)) for part in torch.split(images, 1000)])


def as_split(text: str) -> Split:
    """A split by any of its usual names. Raises UserError for an unknown one."""
    name = {"val": "validation", "valid": "validation"}.get(text, text)
    if name not in get_args(Split):
        raise UserError(f"split {text!r}: allowed are {', '.join(get_args(Split))}")
    return name  # type: ignore[return-value]
