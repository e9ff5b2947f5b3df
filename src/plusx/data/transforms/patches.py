"""Random patches of volumes; a fraction of them contains foreground."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from plusx.data.rng import SampleRNG
from plusx.data.sample import IGNORE_INDEX, Sample


# purposes of these random numbers; the words of an augmentation have 0, 1, 2, ...
_POSITION, _ANCHOR = 1 << 40, 1 << 41


@dataclass(frozen=True)
class PatchSampler:
    """Takes a patch of a volume and its mask; a smaller volume is padded at the end.

    size: voxels per dimension (depth, height, width)
    foreground: fraction of patches with a voxel of a class other than the first
    low: value of the padding; masks are IGNORE_INDEX there
    """

    size: tuple[int, int, int]
    foreground: float
    low: float

    def __call__(self, sample: Sample, rng: SampleRNG) -> Sample:
        assert sample.masks is not None
        begin = self._begin(sample, rng)
        window = tuple(slice(first, first + side) for first, side in zip(begin, self.size))
        image = sample.tensor[(slice(None), *window)].to(torch.float32, copy=True)
        mask = sample.masks[(slice(None), *window)].clone()
        missing = [side - length for side, length in zip(self.size, mask.shape[1:])]
        if any(missing):
            ends = [end for more in reversed(missing) for end in (0, more)]
            image = F.pad(image, ends, value=self.low)
            mask = F.pad(mask, ends, value=IGNORE_INDEX)
        return replace(sample, input=image, masks=mask)

    def _begin(self, sample: Sample, rng: SampleRNG) -> list[int]:
        sides = sample.size
        room = [max(0, side - length) for side, length in zip(sides, self.size)]
        position, anchor = rng.at(_POSITION), rng.at(_ANCHOR)
        anywhere = [position.below(most + 1, draw) for draw, most in enumerate(room)]
        if anchor.uniform() >= self.foreground or sample.anchors is None:
            return anywhere
        anchors = sample.anchors()
        if not anchors:
            return anywhere
        voxels = anchors[anchor.below(len(anchors), 1)]
        voxel = np.unravel_index(int(voxels[anchor.below(len(voxels), 2)]), sides)
        begin = [
            int(coordinate) - position.below(length, draw)
            for draw, (coordinate, length) in enumerate(zip(voxel, self.size))
        ]
        return [min(max(0, first), most) for first, most in zip(begin, room)]
