"""8-bit images, grey or RGB."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from PIL import Image

from plusx.data.batch import MULTIPLE
from plusx.data.image_file import DEFAULT_LIMIT, Decoder, ImageFile, Verdict, examine, open_image
from plusx.data.modality.grid import GridModality, resize_step
from plusx.data.sample import Input
from plusx.data.transforms.steps import Setting
from plusx.data.transforms.transform import Transform, annotated_transform, image_transform
from plusx.data.transforms.words import SOUND, TEXT, VOCABULARY, parse_augment
from plusx.errors import UserError, printable


# by the number of channels: ImageNet's, and their means for grey
IMAGENET_MEAN = {1: (0.449,), 3: (0.485, 0.456, 0.406)}
IMAGENET_STD = {1: (0.226,), 3: (0.229, 0.224, 0.225)}

# how an image of another size is resized: the shorter side to size / crop_fraction, then the centre
# crop; the whole image to the size; the whole image to fit into the size; not at all
Resize = Literal["center_crop", "stretch", "fit", "none"]
_OTHER_WORDS = {"dflip", "brightness", "noise", *SOUND, *TEXT}


@dataclass(frozen=True)
class ImageModality(GridModality):
    """8-bit images with 1 or 3 channels; see GridModality.

    resize: how images of another size are resized, unless a word of augmentation does it
    crop_fraction, interpolation: of center_crop: timm's crop_pct, and the filter
    max_pixels: of a file, by its header; larger images are refused. None: 200 million
    """

    resize: Resize = "center_crop"
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"
    max_pixels: int | None = None

    kind: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"
    words: ClassVar[frozenset[str]] = frozenset(VOCABULARY) - _OTHER_WORDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (1, 3) or (self.low, self.high) != (0, 255):
            raise UserError(
                f"{self.channels} channels from {self.low} to {self.high}: images of 8 bits have "
                "1 or 3 from 0 to 255"
            )
        if self.resize not in get_args(Resize):
            raise UserError(f"resize = {self.resize!r}: {', '.join(get_args(Resize))}")
        if not 0.1 <= self.crop_fraction <= 1:
            raise UserError(f"crop_fraction = {self.crop_fraction}: from 0.1 to 1")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            allowed = ", ".join(Image.Resampling.__members__).lower()
            raise UserError(f"interpolation = {self.interpolation!r}: {allowed}")

    @property
    def limit(self) -> int:
        """Number of pixels above which a file is refused."""
        return DEFAULT_LIMIT if self.max_pixels is None else self.max_pixels

    def verdict_terms(self) -> list[Any]:
        return [*super().verdict_terms(), self.limit]

    def read_file(self, path: str, decoder: Decoder = "pillow") -> Input:
        return ImageFile(path, self.limit, self.channels, decoder)

    def decode(self, source: str | bytes) -> Input:
        return open_image(source, self.limit, self.channels)

    def examine(self, source: str | bytes) -> Verdict:
        return examine(source, self.limit)

    def refuse_archive(self, path: str) -> None:
        if self.max_pixels is not None:
            raise UserError(
                f"{printable(path)}: max_pixels is for separate image files; images in packed and "
                f"tar files have at most {DEFAULT_LIMIT:,} pixels"
            )

    @property
    def varies(self) -> bool:
        return self.resize == "none"

    def resize_steps(self, dense: bool) -> list[dict[str, Any]]:
        pad = {"step": "pad", "side": "bottom right", "value": "mean"}
        if dense and self.varies:
            return [{**pad, "multiple": MULTIPLE}]
        if dense:
            return [resize_step("fit", self.size), {**pad, "size": list(self.size)}]
        if self.resize == "stretch":
            return super().resize_steps(dense)
        return [
            resize_step("shorter_side", self._covered, self.interpolation),
            {"step": "center_crop", "size": list(self.size)},
        ]

    @property
    def _covered(self) -> tuple[int, int]:
        """Height and width that a resized image covers before the crop."""
        height, width = (round(side / self.crop_fraction) for side in self.size)
        return height, width

    def before_crop(self) -> "ImageModality":
        if self.resize != "center_crop":
            return self
        return replace(self, size=self._covered, crop_fraction=1.0)

    def uncropped(self) -> "ImageModality":
        return replace(self, resize="none") if self.resize == "center_crop" else self

    def of_one_size(self) -> "ImageModality":
        return replace(self, resize="fit") if self.varies else self

    def setting(self, channels_last: bool = False) -> Setting:
        size = None if self.resize == "none" else self.size
        crop = self.crop_fraction, self.interpolation
        return Setting(size, self.low, self.high, channels_last, *crop)

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        text = augment if train else ""
        words, setting = parse_augment(text, self.words, self.inputs), self.setting(channels_last)
        if annotated or self.resize in ("fit", "none"):
            return annotated_transform(words, text, setting)
        transform = image_transform(words, text, setting, self.resize, stored)
        return replace(transform, pillow=True)
