"""Volumes on one grid and their masks, as items and annotations of a data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from plusx.data.annotations import Annotations
from plusx.data.dataset import Items
from plusx.data.modality import Modality
from plusx.data.sample import IGNORE_INDEX, Sample


Grid = Float32[np.ndarray, "c d h w"]
Classes = UInt8[np.ndarray, "d h w"]
_ANCHORS = 20_000  # voxels of a class, evenly spread, around which patches are taken


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on the network's grid. `key` changes with its content."""

    name: str
    patient: str
    image: Grid
    mask: Classes | None
    key: str

    @cached_property
    def anchors(self) -> list[np.ndarray]:
        """Voxels of each class except the first, as positions in the flat mask."""
        assert self.mask is not None
        flat = np.asarray(self.mask).reshape(-1)
        anchors = []
        for value in np.flatnonzero(np.bincount(flat, minlength=1)).tolist():
            if value not in (0, IGNORE_INDEX):
                voxels = np.flatnonzero(flat == value)
                anchors.append(voxels[:: -(-len(voxels) // _ANCHORS)])
        return anchors


@dataclass(frozen=True, eq=False)
class VolumeItems(Items):
    """Volumes; an epoch of training takes `patches` patches of each."""

    volumes: list[Volume]
    patches: int = 1
    paths: list[str] | None = None

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, index: int, modality: Modality) -> Sample:
        return Sample(torch.from_numpy(self.volumes[index].image))

    def name(self, index: int) -> str:
        return self.volumes[index].name

    def subset(self, indices: Sequence[int]) -> Items:
        paths = self.paths
        return replace(
            self,
            volumes=[self.volumes[index] for index in indices],
            paths=None if paths is None else [paths[index] for index in indices],
        )

    def digest(self, root: str | None) -> bytes:
        keys = "".join(volume.key for volume in self.volumes)
        return hashlib.sha256(keys.encode()).digest()


@dataclass(frozen=True, eq=False)
class VolumeMasks(Annotations):
    """The class of every voxel of volumes."""

    volumes: list[Volume]
    num_classes: int

    def __len__(self) -> int:
        return len(self.volumes)

    @cached_property
    def counts(self) -> Int64[Tensor, "n k"]:
        """Number of voxels of each class in each volume."""
        rows = [
            np.bincount(np.zeros(0, int) if v.mask is None else v.mask.ravel(), minlength=256)
            for v in self.volumes
        ]
        table = np.array(rows).reshape(len(rows), 256)[:, : self.num_classes]
        return torch.from_numpy(table.copy())

    def add_to(self, sample: Sample, index: int) -> Sample:
        """Return the sample with its mask, of IGNORE_INDEX if there is none."""
        volume = self.volumes[index]
        if volume.mask is None:
            masks = torch.full((1, *sample.size), IGNORE_INDEX, dtype=torch.uint8)
            return replace(sample, masks=masks, mask_fill=IGNORE_INDEX)
        return replace(
            sample,
            masks=torch.from_numpy(volume.mask)[None],
            mask_fill=IGNORE_INDEX,
            anchors=lambda: volume.anchors,
        )

    def subset(self, indices: Sequence[int]) -> Annotations:
        """Return the masks of some volumes, in that order."""
        return replace(self, volumes=[self.volumes[index] for index in indices])

    def digest(self, root: str | None) -> bytes:
        """Return b"", since the digest of the volumes includes their masks."""
        return b""
