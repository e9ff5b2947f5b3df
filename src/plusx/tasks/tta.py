"""Test-time augmentation: predictions averaged over views of an input."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.prediction import Prediction
from plusx.errors import UserError
from plusx.tasks.task import Task, Wrapped


Tta = Literal["none", "flip", "flip-shift", "ten-crop", "multi-scale"]

# He et al. 2015, section 3.4: the shorter sides of the images, for a network of 224 x 224 pixels
SIDES = (224, 256, 384, 480, 640)
_SIDE = 224


class TestTimeAugmented(Wrapped):
    """A task whose prediction is the mean over views of each input.

    "flip": the input and its mirror image; "flip-shift": both, also shifted by a pixel, with the
    six views and the weights of Jordan 2024, section 3.5; "ten-crop": `five_crops` and their mirror
    images (Krizhevsky et al. 2012, section 4.1); "multi-scale": the whole image, resized to each of
    SIDES (He et al. 2015, section 3.4), or for a network of another size in these proportions.

    size: height and width of the network's input, for "ten-crop" and "multi-scale"; None: those of
        the inputs
    Raises UserError if predictions of the task cannot be averaged over these views.
    """

    __test__ = False  # not a test class of pytest

    def __init__(self, task: Task, views: Tta, size: tuple[int, ...] | None = None) -> None:
        super().__init__(task)
        if views not in task.tta:
            raise UserError(
                f"tta = {views!r}: predictions of this task cannot be averaged over these views; "
                f"allowed is {' or '.join(task.tta)}"
            )
        self.views = views
        self.size = size

    def predict(self, batch: Batch) -> Prediction:
        match self.views:
            case "none":
                return self.task.predict(batch)
            case "flip":
                return self._with_mirror(batch)
            case "flip-shift":
                return self._shifted(batch)
            case "ten-crop":
                crops = five_crops(batch.inputs, self._size(batch.inputs))
                views = [self._with_mirror(replace(batch, inputs=crop)) for crop in crops]
                return views[0].average(views, [1 / len(views)] * len(views))
            case "multi-scale":
                images = whole_images(batch)
                return Prediction.joined([self._at_scales(image) for image in images])

    def _shifted(self, batch: Batch) -> Prediction:
        centre, inputs = self._with_mirror(batch), batch.inputs
        padded = F.pad(inputs, [1] * 2 * (inputs.ndim - 2), mode="reflect")
        dims = inputs.ndim - 2
        up_left, down_right = (
            self._with_mirror(replace(batch, inputs=padded[(..., *(shift,) * dims)]))
            for shift in (slice(None, -2), slice(2, None))
        )
        return centre.average([centre, up_left, down_right], [0.5, 0.25, 0.25])

    def _at_scales(self, images: Float[Tensor, "n c h w"]) -> Prediction:
        shorter = min(self._size(images))
        views = [
            self.task.predict(Batch(resized(images, round(side * shorter / _SIDE))))
            for side in SIDES
        ]
        return views[0].average(views, [1 / len(views)] * len(views))

    def _with_mirror(self, batch: Batch) -> Prediction:
        prediction = self.task.predict(batch)
        mirror = self.task.predict(replace(batch, inputs=batch.inputs.flip(-1)))
        return prediction.average([prediction, mirror.mirrored()], [0.5, 0.5])

    def _size(self, inputs: Float[Tensor, "n c h w"]) -> tuple[int, ...]:
        return tuple(inputs.shape[2:]) if self.size is None else self.size

    def predict_slabs(self, batch: Batch) -> Iterator[Prediction]:
        if self.views == "none":
            yield from self.task.predict_slabs(batch)
        elif self.views == "flip" and batch.inputs.ndim > 3:  # mirroring does not move slabs
            mirror = replace(batch, inputs=batch.inputs.flip(-1))
            pairs = zip(self.task.predict_slabs(batch), self.task.predict_slabs(mirror))
            for slab, mirrored in pairs:
                yield slab.average([slab, mirrored.mirrored()], [0.5, 0.5])
        else:
            yield self.predict(batch)


def five_crops(
    images: Float[Tensor, "n c h w"], size: tuple[int, ...]
) -> list[Float[Tensor, "n c _ _"]]:
    """Return crops of `size` (height, width): the four corners and the centre.

    Images of exactly this size are first padded by an eighth of it on each side, by reflection: 32
    x 32 pixels become 40 x 40, as they do in training with `pad4 crop`.
    """
    height, width = size
    if tuple(images.shape[2:]) == (height, width):
        images = F.pad(images, [width // 8] * 2 + [height // 8] * 2, mode="reflect")
    down, right = images.shape[2] - height, images.shape[3] - width
    corners = [(top, left) for top in (0, down) for left in (0, right)]
    return [
        images[:, :, top : top + height, left : left + width]
        for top, left in (*corners, (down // 2, right // 2))
    ]


def whole_images(batch: Batch) -> list[Float[Tensor, "m c _ _"]]:
    """Return the images of a batch without their padding, those of one size together."""
    sizes = batch.extras.get("content_size")
    if sizes is None:
        return [batch.inputs]
    listed = sizes.tolist()
    if all(size == listed[0] for size in listed):
        height, width = listed[0]
        return [batch.inputs[:, :, :height, :width]]
    return [image[None, :, :height, :width] for image, (height, width) in zip(batch.inputs, listed)]


def resized(images: Float[Tensor, "n c h w"], shorter: int) -> Float[Tensor, "n c _ _"]:
    """Return images with a shorter side of this many pixels, bilinear with antialiasing."""
    height, width = images.shape[2:]
    least = min(height, width)
    size = [max(1, round(side * shorter / least)) for side in (height, width)]
    if size == [height, width]:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
