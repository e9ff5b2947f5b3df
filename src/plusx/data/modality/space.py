"""The grid on which a network sees volumes: axes, spacing in mm, and the way there and back.

Coordinates of the world are those of NIfTI: x grows to the patient's right, y to the front
(anterior), z to the head (superior), in mm. An orientation is three letters, one for each axis of
an array, that say where it grows to: "SPL" is slices towards the head, rows towards the back and
columns towards the left, as an axial series is looked at.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Num, Shaped, UInt8

from plusx.errors import UserError


Spacing = tuple[float, float, float]
LETTERS = ("LR", "PA", "IS")  # of x, y and z: where they fall, where they grow
_SAME = 1e-3  # a difference of spacings that is none, as a share


class Turn(NamedTuple):
    """How the axes of a file's array become those of an orientation."""

    order: tuple[int, ...]  # which axis of the file each of ours is
    flipped: tuple[bool, ...]  # whether ours runs the other way

    def there(self, values: Shaped[np.ndarray, "*c x y z"]) -> Shaped[np.ndarray, "*c d h w"]:
        """An array of the file, its axes in our order."""
        lead = values.ndim - 3
        turned = values.transpose(*range(lead), *(lead + axis for axis in self.order))
        return self._flipped(turned)

    def back(self, values: Shaped[np.ndarray, "*c d h w"]) -> Shaped[np.ndarray, "*c x y z"]:
        """An array of ours, its axes as in the file."""
        lead = values.ndim - 3
        turned = self._flipped(values)
        places = [self.order.index(axis) for axis in range(3)]
        return turned.transpose(*range(lead), *(lead + place for place in places))

    def _flipped(self, values: np.ndarray) -> np.ndarray:
        lead = values.ndim - 3
        return np.flip(values, tuple(lead + i for i, flip in enumerate(self.flipped) if flip))

    def spacing(self, affine: Num[np.ndarray, "4 4"]) -> Spacing:
        """The lengths in mm of a voxel along our axes."""
        lengths = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
        slices, rows, columns = (float(lengths[axis]) for axis in self.order)
        return slices, rows, columns


@dataclass(frozen=True)
class Space:
    """How volumes are brought to one grid and one scale.

    patch        voxels a dimension that a network sees at a time
    spacing      mm a voxel, along the axes of `orientation`
    orientation  see above
    range        the values that a volume may have, such as -1024 to 3071 of CT in Hounsfield units
    percentiles  whether each volume's own percentiles 0.5 and 99.5 become 0 and 1, as suits MR,
                 whose values have no unit
    """

    patch: tuple[int, int, int]
    spacing: Spacing
    orientation: str
    range: tuple[float, float]
    percentiles: bool = False

    def __post_init__(self) -> None:
        check_orientation(self.orientation)
        if min(self.patch) < 1:
            raise UserError(f"patch {list(self.patch)}: every side is at least 1")
        if not all(0 < side < 1e4 for side in self.spacing):
            raise UserError(f"spacing {list(self.spacing)}: three numbers of mm above 0")
        if not -1e9 < self.range[0] < self.range[1] < 1e9:
            raise UserError(f"range {list(self.range)}: from a lower number to a higher one")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "patch": list(self.patch),
            "spacing": list(self.spacing),
            "orientation": self.orientation,
            "range": list(self.range),
            "percentiles": self.percentiles,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Space":
        """The other way round. Raises UserError where a key is missing, unknown or unfit."""
        wanted = {"patch", "spacing", "orientation", "range", "percentiles"}
        if not isinstance(values, dict) or set(values) != wanted:
            raise UserError(f"space has the keys {', '.join(sorted(wanted))}: {values!r}")
        try:
            depth, height, width = (int(side) for side in values["patch"])
            slices, rows, columns = (float(side) for side in values["spacing"])
            low, high = (float(value) for value in values["range"])
            return cls(
                (depth, height, width),
                (slices, rows, columns),
                str(values["orientation"]),
                (low, high),
                bool(values["percentiles"]),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"space {values!r}: {error}") from None


def check_orientation(text: str) -> None:
    """UserError for what is no orientation."""
    axes = sorted(next((i for i, pair in enumerate(LETTERS) if c in pair), -1) for c in text)
    if axes != [0, 1, 2]:
        raise UserError(
            f"orientation {text!r}: one of the letters L and R, one of P and A and one of I and S, "
            'in the order of the axes, for instance "SPL" or "RAS"'
        )


def affine_problem(affine: Num[np.ndarray, "4 4"]) -> str | None:
    """Why an affine does not say where voxels lie; None where it does."""
    if not np.isfinite(affine).all():
        return "its affine has numbers that are not finite"
    lengths = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
    if not (lengths > 1e-6).all():
        return "its affine gives voxels no size"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        return "two axes of its affine point the same way"
    return None


def orientation_of(affine: Num[np.ndarray, "4 4"]) -> str:
    """The orientation of the array whose voxels an affine places, by the nearest axes."""
    return "".join(LETTERS[world][int(grows)] for world, grows in _nearest(affine))


def turn_to(orientation: str, affine: Num[np.ndarray, "4 4"]) -> Turn:
    """How an array of this affine comes to an orientation."""
    held = _nearest(affine)
    order, flipped = [], []
    for letter in orientation:
        world = next(i for i, pair in enumerate(LETTERS) if letter in pair)
        axis = next(axis for axis, (found, _) in enumerate(held) if found == world)
        order.append(axis)
        flipped.append(held[axis][1] != bool(LETTERS[world].index(letter)))
    return Turn(tuple(order), tuple(flipped))


def affine_of(orientation: str, spacing: Spacing) -> Num[np.ndarray, "4 4"]:
    """Where the voxels of an array lie that has this orientation and spacing, the first at 0."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, side) in enumerate(zip(orientation, spacing, strict=True)):
        world = next(i for i, pair in enumerate(LETTERS) if letter in pair)
        affine[world, axis] = side if LETTERS[world].index(letter) else -side
    return affine


def _nearest(affine: Num[np.ndarray, "4 4"]) -> list[tuple[int, bool]]:
    """For each axis of an array the axis of the world that it is nearest to, and if both grow."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)
    best = max(
        permutations(range(3)),
        key=lambda order: sum(abs(columns[world, axis]) for axis, world in enumerate(order)),
    )
    return [(world, bool(columns[world, axis] > 0)) for axis, world in enumerate(best)]


def count_at(count: int, old: float, new: float) -> int:
    """How many voxels of the new spacing cover as many mm as `count` of the old one."""
    return count if _same(old, new) else max(1, round(count * old / new))


def resampled(
    values: Float32[np.ndarray, "*c d h w"],
    old: Spacing,
    new: Spacing,
    shape: tuple[int, ...] | None = None,
) -> Float32[np.ndarray, "*c _ _ _"]:
    """Values at another spacing: linear between voxels, a mean over them where there are fewer.

    Both grids begin at the same edge of the same volume. `shape` is that of the new one; None is
    as many voxels as cover the old one.
    """
    for place in range(3):
        axis = values.ndim - 3 + place
        count: int = values.shape[axis]
        wanted = count_at(count, old[place], new[place]) if shape is None else shape[place]
        if _same(old[place], new[place]) and wanted == count:
            continue
        weights = _weights(count, wanted, new[place] / old[place])
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def nearest(
    classes: UInt8[np.ndarray, "d h w"],
    old: Spacing,
    new: Spacing,
    shape: tuple[int, ...] | None = None,
) -> UInt8[np.ndarray, "_ _ _"]:
    """Classes at another spacing: those of the nearest voxel."""
    for axis in range(3):
        count = classes.shape[axis]
        wanted = count_at(count, old[axis], new[axis]) if shape is None else shape[axis]
        places = _places(wanted, 1.0 if _same(old[axis], new[axis]) else new[axis] / old[axis])
        chosen = np.clip(np.floor(places + 0.5), 0, count - 1).astype(np.int64)
        classes = np.take(classes, chosen, axis)
    return np.ascontiguousarray(classes)


def _same(old: float, new: float) -> bool:
    return abs(new - old) <= _SAME * old


def _places(wanted: int, step: float) -> np.ndarray:
    """Where on the old axis, counted in its voxels, the middles of the new voxels lie."""
    return (np.arange(wanted) + 0.5) * step - 0.5


def _weights(count: int, wanted: int, step: float) -> Float32[np.ndarray, "wanted count"]:
    """What each old voxel counts for each new one: a triangle as wide as the wider of the two."""
    away = np.abs(_places(wanted, step)[:, None] - np.arange(count)[None]) / max(step, 1.0)
    weights = np.maximum(1 - away, 0)
    empty: Bool[np.ndarray, "wanted"] = weights.sum(1) == 0  # new voxels beyond the old ones
    weights[empty, -1] = 1
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
