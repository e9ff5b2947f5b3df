"""How far the surface of what was told lies from the surface of what is right, in mm.

The surface of a mask are its voxels of which a neighbour across a face is none of it, or is not in
the image at all. Distances are Euclidean, between the middles of voxels. HD95 of two masks is the
larger of two 95th percentiles: of the distances from each surface voxel of the one to the nearest
of the other, and the other way round (Huttenlocher et al. 1993 for the maximum; as MONAI has it).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from plusx.errors import UserError
from plusx.tasks.overlap import UNJUDGED


class SurfaceDistance:
    """The figure hd95, in mm: of each image and each class, then the mean over them.

    `update` takes probabilities (n, k, *s) and classes (n, *s) as uint8, where 255 is not judged
    and counts neither as told nor as right. Where a class is in neither mask there is no distance;
    where it is in one of them alone, there is none either, and `hd95_missed` counts these pairs of
    an image and a class: read both. Where there is no distance at all, hd95 is None.

    spacing: mm a position, along each dimension.
    background: the class that is what is left over, which has no distance.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        classes: Sequence[str] | None = None,
        background: int | None = None,
    ) -> None:
        self.spacing = tuple(spacing)
        self.classes = classes
        self.background = background
        self._distances: dict[int, list[float]] = {}
        self._missed: dict[int, int] = {}

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        for probabilities, right in zip(predictions, targets):
            classes = probabilities.shape[0]
            told = probabilities.argmax(0).cpu().numpy().astype(np.int64)
            wanted = right.cpu().numpy().astype(np.int64)
            told[wanted == UNJUDGED] = UNJUDGED
            for number in range(classes):
                self._distances.setdefault(number, [])
                self._missed.setdefault(number, 0)
                one, other = told == number, wanted == number
                if number == self.background or not (one.any() or other.any()):
                    continue
                if not (one.any() and other.any()):
                    self._missed[number] += 1
                    continue
                self._distances[number].append(hd95(one, other, self.spacing))

    def compute(self) -> dict[str, Any]:
        if not self._distances:
            raise UserError("there are no predictions to judge: not one batch was seen")
        names = self.classes or [str(number) for number in self._distances]
        every = [each for own in self._distances.values() for each in own]
        return {
            "hd95": float(np.mean(every)) if every else None,
            "hd95_missed": sum(self._missed.values()),
            "hd95_per_class": [
                {
                    "label": names[number],
                    "hd95": float(np.mean(own)) if own else None,
                    "count": len(own),
                    "missed": self._missed[number],
                }
                for number, own in self._distances.items()
                if number != self.background
            ],
        }


def hd95(
    one: Bool[np.ndarray, "*s"], other: Bool[np.ndarray, "*s"], spacing: Sequence[float]
) -> float:
    """HD95 of two masks, both with something in them, in the unit of the spacing."""
    from scipy.ndimage import distance_transform_edt  # it comes with scikit-learn

    here, there = surface(one), surface(other)
    # what lies around both is enough: no nearest voxel is elsewhere
    window = tuple(
        slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(here | there)
    )
    here, there = here[window], there[window]
    return max(
        float(np.percentile(distance_transform_edt(~to, sampling=spacing)[where], 95))
        for where, to in ((here, there), (there, here))
    )


def surface(mask: Bool[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """The voxels of a mask of which a neighbour across a face is not in it."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        for way in (1, -1):
            moved = np.zeros_like(mask)
            into, out = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
            into[axis], out[axis] = (slice(1, None), slice(None, -1))[::way]
            moved[tuple(into)] = mask[tuple(out)]
            inner &= moved
    return mask & ~inner
