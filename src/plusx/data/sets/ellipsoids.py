"""The synthetic set `ellipsoids`: noisy volumes with ellipsoids, the same on every machine.

A scan of 64 x 64 x 64 mm in 32 slices of 2 mm: three to five ellipsoids a little brighter than the
background, noise of a larger amplitude in every voxel, and slowly varying shading, as of the coils
of an MR scanner. A threshold cannot segment them: the best one has a Dice of at most 0.60, which a
test checks.
"""

import hashlib

import numpy as np
import torch

from plusx.data.dataset import Dataset, Split
from plusx.data.modality import VolumeModality
from plusx.data.modality.space import Space, Spacing, resampled
from plusx.data.splits import held_out
from plusx.data.volume_items import Classes, Grid, Volume, VolumeItems, VolumeMasks


SHAPE = (32, 64, 64)
SPACING: Spacing = (2.0, 1.0, 1.0)
CLASSES = ("background", "ellipsoid")
_COUNTS = {"train": 72, "test": 24}
_HELD_OUT = 12  # of those that train, unless said otherwise
_SEEDS = {"train": 1, "test": 2}
_LEVEL, _BRIGHTER, _NOISE, _SHADING = 0.4, 0.12, 0.08, 0.06
_MEAN, _STD = (0.4,), (0.13,)


def open_ellipsoids(
    split: Split,
    validation: float | int | None,
    seed: int,
    patch: tuple[int, int, int],
    patches: int,
    foreground: float,
) -> Dataset:
    """Open a split: 72 patients for training, 12 of them for validation, and 24 for testing.

    validation  a fraction (below 1) or a number of patients, chosen by the seed; None: the last 12
    patch       voxels per dimension of the network's input
    patches     per volume in an epoch
    foreground  fraction of patches with a voxel of an ellipsoid
    """
    train = np.arange(_COUNTS["train"])
    held = train[-_HELD_OUT:]
    if validation is not None:
        held = held_out(torch.zeros(len(train), dtype=torch.int64), validation, seed)
    numbers = {
        "train": [("train", number) for number in np.delete(train, held).tolist()],
        "validation": [("train", number) for number in held.tolist()],
        "test": [("test", number) for number in range(_COUNTS["test"])],
        "all": [(part, number) for part, count in _COUNTS.items() for number in range(count)],
    }[split]
    volumes = [make_volume(part, number) for part, number in numbers]
    masks = VolumeMasks(volumes, len(CLASSES))
    return Dataset(
        name="ellipsoids",
        split=split,
        classes=CLASSES,
        labels=(masks.counts > 0).to(torch.float32),
        modality=VolumeModality(
            patch[1:],
            1,
            _MEAN,
            _STD,
            0.0,
            1.0,
            space=Space(patch, SPACING, "SPL", (0.0, 1.0)),
            foreground=foreground,
        ),
        items=VolumeItems(volumes, patches),
        annotations=masks,
    )


def make_volume(part: str, number: int) -> Volume:
    """Return one volume with its mask."""
    random = np.random.Generator(np.random.Philox(key=[_SEEDS[part], number]))
    mask = _ellipsoids(random)
    coarse = random.uniform(-1, 1, (4, 4, 4)).astype(np.float32)
    steps = [side / 4 * mm for side, mm in zip(SHAPE, SPACING)]
    shading = resampled(coarse, (steps[0], steps[1], steps[2]), SPACING, SHAPE)
    noise = random.standard_normal(SHAPE, np.float32)
    values = _LEVEL + _BRIGHTER * mask + _SHADING * shading + _NOISE * noise
    image: Grid = np.clip(values, 0, 1).astype(np.float32)[None]
    name = f"{part}-{number:02}"
    return Volume(name, name, image, mask, hashlib.sha256(image.tobytes()).hexdigest())


def _ellipsoids(random: np.random.Generator) -> Classes:
    """Return the mask of three to five randomly oriented ellipsoids."""
    centres = np.stack(
        np.meshgrid(*((np.arange(n) + 0.5) * mm for n, mm in zip(SHAPE, SPACING)), indexing="ij"),
        -1,
    )
    size = np.array(SHAPE) * SPACING
    mask = np.zeros(SHAPE, np.uint8)
    for _ in range(int(random.integers(3, 6))):
        middle = random.uniform(0.15, 0.85, 3) * size
        radii = random.uniform(7, 13, 3)  # mm
        axes = np.linalg.qr(random.standard_normal((3, 3)))[0]
        mask[(((centres - middle) @ axes / radii) ** 2).sum(-1) < 1] = 1
    return mask
