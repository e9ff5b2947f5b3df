"""`Sample`: one input and its annotations."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int64, Num, UInt8
from PIL import Image
from torch import Tensor

from plusx.data.image_file import ImageFile


# in masks: positions that are neither trained on nor evaluated
IGNORE_INDEX = 255
NO_BOXES = np.zeros((0, 6), np.float32)

# a file that is not decoded yet, a Pillow image (RGB or L), values (c, *s), or token numbers (t,)
Input = ImageFile | Image.Image | Num[Tensor, "..."]


@dataclass(frozen=True, eq=False)
class Sample:
    """An input and its annotations, as stored or as transformed.

    target: class number; for several labels a row (k,) of 0 and 1; or token numbers (u,); None if
        boxes or masks are the annotation, or it is unknown
    boxes: left, top, right, bottom, class and crowd, in pixels of the (transformed) input
    masks: the instance masks of the boxes, 1 inside and 0 outside; or one plane, the class of every
        position
    mask_fill: the value of a mask outside of the input: 0, or IGNORE_INDEX for classes
    scale: pixels of the (transformed) input per pixel of the stored one
    stored_size: height and width as stored
    anchors: for volumes, the positions of each class around which patches are taken
    """

    input: Input
    target: int | Float32[Tensor, "k"] | Int64[Tensor, "u"] | None = None
    boxes: Float32[np.ndarray, "m 6"] | None = None
    masks: UInt8[Tensor, "p *s"] | None = None
    mask_fill: int = 0
    scale: float = 1.0
    stored_size: tuple[int, ...] | None = None
    anchors: Callable[[], list[np.ndarray]] | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width, or depth, height and width."""
        if isinstance(self.input, ImageFile | Image.Image):
            return self.input.size[1], self.input.size[0]
        return tuple(self.input.shape[1:])

    @property
    def has_instance_masks(self) -> bool:
        """Whether the masks are those of the boxes."""
        return self.masks is not None and self.mask_fill == 0

    @property
    def tensor(self) -> Num[Tensor, "..."]:
        """The input's values."""
        if isinstance(self.input, Tensor):
            return self.input
        return image_tensor(self.pillow)

    @property
    def pillow(self) -> Image.Image:
        """Return the input as a Pillow image."""
        if isinstance(self.input, ImageFile):
            return self.input.decoded()
        if isinstance(self.input, Image.Image):
            return self.input
        return pillow_image(self.tensor.permute(1, 2, 0).numpy())

    def as_tensor(self) -> "Sample":
        return self if isinstance(self.input, Tensor) else replace(self, input=self.tensor)

    def as_pillow(self) -> "Sample":
        return self if isinstance(self.input, Image.Image) else replace(self, input=self.pillow)


def pillow_image(pixels: UInt8[np.ndarray, "h w c"], channels: int | None = None) -> Image.Image:
    """Return pixels as a Pillow image of mode RGB or L."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    if channels is None or channels == pixels.shape[2]:
        return image
    return image.convert({1: "L", 3: "RGB"}[channels])


def image_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of an RGB or grey Pillow image in writable memory."""
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def image_tensor(image: Image.Image) -> UInt8[Tensor, "c h w"]:
    """Return the pixels of an RGB or grey Pillow image."""
    return torch.from_numpy(image_array(image)).permute(2, 0, 1)
