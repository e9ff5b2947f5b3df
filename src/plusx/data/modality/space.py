"""The grid of a network's input volumes: axes, spacing in mm, and resampling to and from it.

World coordinates are those of NIfTI in mm: x increases to the patient's right, y to the front
(anterior), z to the head (superior). An orientation has a letter for each axis of an array, the
direction in which it increases: "SPL" is slices towards the head, rows towards the back and columns
towards the left, the usual display of an axial series. Axes are reordered by nibabel.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num, Shaped, UInt8
from pydantic import ConfigDict

from plusx.errors import UserError


Spacing = tuple[float, float, float]
_AXES = ("LR", "PA", "IS")  # of x, y and z: decreasing, increasing
_TOLERANCE = 1e-3  # relative difference up to which spacings count as equal


@dataclass(frozen=True)
class Space:
    """The grid and the scale of values.

    patch        voxels per dimension of the network's input
    spacing      mm per voxel, along the axes of `orientation`
    orientation  see above
    range        the values that a volume may have, such as -1024 to 3071 of CT in Hounsfield units
    percentiles  whether each volume's own percentiles 0.5 and 99.5 become 0 and 1, which suits MR,
                 since its values have no unit
    """

    patch: tuple[int, int, int]
    spacing: Spacing
    orientation: str
    range: tuple[float, float]
    percentiles: bool = False

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        check_orientation(self.orientation)
        if min(self.patch) < 1:
            raise UserError(f"patch {list(self.patch)}: every side is at least 1")
        if not all(0 < side < 1e4 for side in self.spacing):
            raise UserError(f"spacing {list(self.spacing)}: three numbers of mm above 0")
        if not -1e9 < self.range[0] < self.range[1] < 1e9:
            raise UserError(f"range {list(self.range)}: from a lower number to a higher one")


def check_orientation(orientation: str) -> None:
    """Raise UserError if the letters do not name each axis once."""
    axes = [i for letter in orientation for i in range(3) if letter in _AXES[i]]
    if sorted(axes) != [0, 1, 2] or len(orientation) != 3:
        raise UserError(
            f"orientation {orientation!r}: one of the letters L and R, one of P and A and "
            'one of I and S, in the order of the axes, for instance "SPL" or "RAS"'
        )


def affine_problem(affine: Num[np.ndarray, "4 4"]) -> str | None:
    """Return why an affine does not define voxel positions, or None."""
    if not np.isfinite(affine).all():
        return "its affine has numbers that are not finite"
    lengths = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
    if not (lengths > 1e-6).all():
        return "its affine has voxels of size 0"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "two axes of its affine point the same way"
    return None


def reoriented(
    values: Shaped[np.ndarray, "*c x y z"], affine: Num[np.ndarray, "4 4"], orientation: str
) -> Shaped[np.ndarray, "*c d h w"]:
    """Return an array with voxels placed by `affine`, with its axes in another orientation."""
    import nibabel.orientations as axes

    stored, target = axes.io_orientation(affine), axes.axcodes2ornt(orientation)
    return _with_axes(values, axes.ornt_transform(stored, target))


def with_stored_axes(
    values: Shaped[np.ndarray, "*c d h w"], affine: Num[np.ndarray, "4 4"], orientation: str
) -> Shaped[np.ndarray, "*c x y z"]:
    """The inverse of `reoriented`: an array with the axes of the one placed by `affine`."""
    import nibabel.orientations as axes

    stored, target = axes.io_orientation(affine), axes.axcodes2ornt(orientation)
    return _with_axes(values, axes.ornt_transform(target, stored))


def with_axes_of(
    values: Shaped[np.ndarray, "*c x y z"],
    affine: Num[np.ndarray, "4 4"],
    other: Num[np.ndarray, "4 4"],
) -> tuple[Shaped[np.ndarray, "*c i j k"], Float64[np.ndarray, "4 4"]]:
    """Return an array and its affine with the axes of another affine."""
    import nibabel.orientations as axes

    transform = axes.ornt_transform(axes.io_orientation(affine), axes.io_orientation(other))
    back = axes.inv_ornt_aff(transform, values.shape[-3:])
    return _with_axes(values, transform), affine.astype(np.float64) @ back


def _with_axes(values: np.ndarray, transform: np.ndarray) -> np.ndarray:
    import nibabel.orientations as axes

    leading = list(range(values.ndim - 3))
    trailing = [axis - len(leading) for axis in leading]
    reordered = axes.apply_orientation(np.moveaxis(values, leading, trailing), transform)
    return np.moveaxis(reordered, trailing, leading)


def reoriented_spacing(affine: Num[np.ndarray, "4 4"], orientation: str) -> Spacing:
    """Return the voxel sizes in mm along the axes of an orientation."""
    import nibabel.orientations as axes

    lengths = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
    stored = axes.io_orientation(affine)[:, 0].tolist()
    target = axes.axcodes2ornt(orientation)[:, 0]
    slices, rows, columns = (float(lengths[stored.index(axis)]) for axis in target)
    return slices, rows, columns


def affine_of(orientation: str, spacing: Spacing) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of an array with this orientation, spacing and the first voxel at 0."""
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (letter, side) in enumerate(zip(orientation, spacing, strict=True)):
        world = next(i for i, letters in enumerate(_AXES) if letter in letters)
        affine[world, axis] = side if letter in "RAS" else -side
    return affine


def count_at(count: int, old: float, new: float) -> int:
    """Return how many voxels of the new spacing cover `count` of the old one."""
    return count if _same(old, new) else max(1, round(count * old / new))


def resampled(
    values: Float32[np.ndarray, "*c d h w"],
    old: Spacing,
    new: Spacing,
    shape: tuple[int, ...] | None = None,
) -> Float32[np.ndarray, "*c _ _ _"]:
    """Resample values: linear interpolation, or a weighted mean for larger voxels.

    Both grids begin at the same edge of the volume. `shape` is that of the result; None: as many
    voxels as cover the old grid.
    """
    for dimension in range(3):
        axis = values.ndim - 3 + dimension
        count: int = values.shape[axis]
        new_count = shape[dimension] if shape else count_at(count, old[dimension], new[dimension])
        if _same(old[dimension], new[dimension]) and new_count == count:
            continue
        weights = _weights(count, new_count, new[dimension] / old[dimension])
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def nearest(
    classes: UInt8[np.ndarray, "d h w"], old: Spacing, new: Spacing
) -> UInt8[np.ndarray, "_ _ _"]:
    """Resample classes by nearest neighbour."""
    for axis in range(3):
        count = classes.shape[axis]
        step = 1.0 if _same(old[axis], new[axis]) else new[axis] / old[axis]
        centres = _centres(count_at(count, old[axis], new[axis]), step)
        indices = np.clip(np.floor(centres + 0.5), 0, count - 1)
        classes = np.take(classes, indices.astype(np.int64), axis)
    return np.ascontiguousarray(classes)


def _same(old: float, new: float) -> bool:
    return abs(new - old) <= _TOLERANCE * old


def _centres(count: int, step: float) -> np.ndarray:
    """Return the centres of the new voxels along an axis, in old voxels."""
    return (np.arange(count) + 0.5) * step - 0.5


def _weights(count: int, new_count: int, step: float) -> Float32[np.ndarray, "new old"]:
    """Return the weight of each old voxel in each new one: a triangle of the larger width."""
    distance = np.abs(_centres(new_count, step)[:, None] - np.arange(count)[None]) / max(step, 1.0)
    weights = np.maximum(1 - distance, 0)
    empty: Bool[np.ndarray, "new"] = weights.sum(1) == 0  # new voxels beyond the old ones
    weights[empty, -1] = 1
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
