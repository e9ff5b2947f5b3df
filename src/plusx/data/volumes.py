"""What volumes are, once they are read: values and masks on one grid."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor


NOT_JUDGED = 255  # in a mask
Grid = Float32[np.ndarray, "c d h w"]
Classes = UInt8[np.ndarray, "d h w"]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on the network's grid. `key` changes with its content."""

    name: str
    patient: str
    image: Grid
    mask: Classes | None
    key: str


@dataclass(frozen=True, eq=False)
class Volumes:
    """The volumes of a set, and how patches are taken of those that train.

    patches     that an epoch takes of each volume
    foreground  the share of patches that hold a voxel of a class other than the first
    """

    each: list[Volume]
    patches: int = 1
    foreground: float = 0.0

    def __len__(self) -> int:
        return len(self.each)

    def subset(self, indices: Sequence[int]) -> "Volumes":
        """Some of the volumes, in that order."""
        return replace(self, each=[self.each[index] for index in indices])

    def counts(self, num_classes: int) -> Int64[Tensor, "n k"]:
        """How many voxels of each class every volume has."""
        rows = [
            np.bincount(np.zeros(0, int) if v.mask is None else v.mask.ravel(), minlength=256)
            for v in self.each
        ]
        return torch.from_numpy(np.array(rows).reshape(len(self.each), 256)[:, :num_classes].copy())

    def digest(self) -> bytes:
        """A digest that changes with every volume."""
        return hashlib.sha256("".join(volume.key for volume in self.each).encode()).digest()
