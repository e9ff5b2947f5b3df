"""Volumes on one grid, from which networks get patches."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from plusx.data.modality.grid import GridModality
from plusx.data.modality.space import Space
from plusx.data.transforms.patches import PatchSampler
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.words import error_at, parse_augment
from plusx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VolumeModality(GridModality):
    """Volumes on the grid `space`.

    foreground: fraction of training patches with a voxel of a class other than the first
    """

    space: Space
    foreground: float = 0.0

    kind: ClassVar[str] = "volume"
    noun: ClassVar[str] = "volume"
    words: ClassVar[frozenset[str]] = frozenset(
        {"flip", "vflip", "dflip", "rot90", "brightness", "noise"}
    )
    evaluation_batch_size: ClassVar[int | None] = 1  # volumes differ in size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != self.space.patch[1:]:
            raise UserError(f"size {self.size}: a patch has {self.space.patch}")

    @property
    def ndim(self) -> int:
        return 3

    @property
    def grid(self) -> Space:
        return self.space

    def resize_steps(self, dense: bool) -> list[dict[str, Any]]:
        return [{"step": "resample", **asdict(self.space)}, {"step": "windows"}]

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        text, patch = augment if train else "", self.space.patch
        words = parse_augment(text, self.words, self.inputs)
        for number, word in enumerate(words, 1):
            if word.kind == "rot90" and patch[1] != patch[2]:
                reason = "needs as many rows as columns in a patch"
                raise error_at(text, number, word.text, reason)
        setting = Setting(patch, self.low, self.high)
        patches = PatchSampler(patch, self.foreground, self.low) if train else None
        final = patch if train else None
        return Transform(words, setting, final, annotated=True, patches=patches)
