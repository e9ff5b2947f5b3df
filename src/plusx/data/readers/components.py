"""Boxes from masks: the connected components of chosen classes, as cars in a street."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from plusx.data.annotations import Boxes, Masks
from plusx.data.instance_mask import InstanceMask


# pixels that touch at a corner are connected
_TOUCHING = np.ones((3, 3), np.int8)


def boxes_of_components(
    masks: Masks, chosen: Sequence[int], min_area: int, instances: bool
) -> Boxes:
    """The components of the classes `chosen`, which become the classes 0, 1, ... of the boxes.

    Parts of fewer than `min_area` pixels are crowds, which are not judged: what is left of
    something behind a pole, or too far away to be told. Two things that touch are one part.
    """
    found = [_boxes(masks.mask(index), chosen, min_area, instances) for index in range(len(masks))]
    rows, outlines = [each[0] for each in found], [each[1] for each in found]
    return Boxes(rows, outlines if instances else None)


def _boxes(
    mask: UInt8[np.ndarray, "h w"], chosen: Sequence[int], min_area: int, instances: bool
) -> tuple[np.ndarray, list[InstanceMask]]:
    from scipy import ndimage  # it comes with scikit-learn

    rows, outlines = [], []
    for number, place in enumerate(chosen):
        components, _ = ndimage.label(mask == place, _TOUCHING)
        sizes = np.bincount(components.ravel())
        for part, window in enumerate(ndimage.find_objects(components), 1):
            down, along = window
            crowd = float(sizes[part] < min_area)
            rows.append((along.start, down.start, along.stop, down.stop, number, crowd))
            if instances:
                outlines.append(InstanceMask.of(components == part))
    return np.array(rows, np.float32).reshape(-1, 6), outlines
