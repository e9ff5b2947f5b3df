"""`Modality`: what every kind of input has."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Num
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from plusx.data.batch import Collated, collate
from plusx.data.buffer_pool import BufferPool
from plusx.data.image_file import DEFAULT_LIMIT, Decoder, Verdict, decoders, printable
from plusx.data.modality.space import Space
from plusx.data.sample import Input, Sample
from plusx.data.transforms.transform import Transform
from plusx.errors import UserError


if TYPE_CHECKING:
    from plusx.data.dataset import Dataset

_CACHE_VERSION = 4  # increased whenever the rules of decoding change


class Modality:
    """How a stored input becomes a network's input. A new kind is a frozen dataclass, whose fields
    are saved with the weights.

    size: positions of the network's input along each dimension; of sequences the maximum
    channels: of the network's input; of text the number of tokens
    """

    size: tuple[int, ...]
    channels: int

    kind: ClassVar[str]
    noun: ClassVar[str]  # what one of its samples is called in messages
    words: ClassVar[Collection[str]]  # of augmentation
    is_image: ClassVar[bool] = False
    length_unit: ClassVar[str] = ""  # in which lengths are shown
    tokens: ClassVar[bool] = False  # whether inputs are token numbers
    key: ClassVar[str] = "path"  # the column of predictions that identifies the input
    # the only batch size of evaluation; None: any
    evaluation_batch_size: ClassVar[int | None] = None

    def read_file(self, path: str, decoder: Decoder = "pillow") -> Input:
        """Read a file. Raises UnreadableInput with the reason; OSError."""
        raise NotImplementedError

    def decode(self, source: str | bytes) -> Input:
        """Read and fully check a file. Raises UnreadableInput with the reason; OSError."""
        raise UserError(f"{self.inputs} are read from files, not from bytes or arrays")

    def from_values(self, values: Image.Image | np.ndarray | Tensor) -> Input:
        """Return the input of values in memory. Raises UserError if they have another shape."""
        raise UserError(f"the network takes {self.inputs}, not arrays")

    def transform(
        self,
        augment: str,
        *,
        train: bool,
        annotated: bool = False,
        stored: bool = False,
        channels_last: bool = False,
    ) -> Transform:
        """Return the transform of samples.

        augment: words of augmentation, applied if `train`
        annotated: whether samples have boxes or masks
        stored: whether all inputs are stored at the network's size
        Raises UserError for an augmentation that these inputs cannot have.
        """
        raise NotImplementedError

    def collate(self, samples: Sequence[Sample], transform: Transform) -> Collated:
        """Return transformed samples as one batch, not yet normalised."""
        return collate(samples, transform)

    def normalise(
        self, values: Num[Tensor, "..."], pool: BufferPool | None = None
    ) -> Num[Tensor, "..."]:
        """Return the network's input for collated inputs.

        pool: memory for large batches; None: it is allocated
        """
        raise NotImplementedError

    def to_pixels(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return the pixels of normalised inputs, from 0 to 1: the inverse of `from_pixels`.

        Raises UserError if inputs are not values on a grid.
        """
        raise UserError(f"the network takes {self.inputs}, which have no pixels from 0 to 1")

    def from_pixels(self, pixels: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Return normalised inputs of pixels from 0 to 1, so that gradients pass through it."""
        raise UserError(f"the network takes {self.inputs}, which have no pixels from 0 to 1")

    def fitted(self, dataset: "Dataset") -> "Modality":
        """Return the modality with what is measured on the training set, such as a vocabulary."""
        return self

    def like(self, other: "Modality") -> "Modality":
        """Return the modality with the measured values of another one, of a trained network."""
        return self

    def warnings(self, dataset: "Dataset") -> list[str]:
        """Return warnings about inputs that the modality changes, such as truncated texts."""
        return []

    def verdict_terms(self) -> list[Any]:
        """Return what the verdict on a file depends on, besides the file."""
        return [_CACHE_VERSION, DEFAULT_LIMIT, *decoders()]

    def examine(self, source: str | bytes) -> Verdict:
        """Decode a file fully, and return the verdict."""
        raise NotImplementedError

    def verdict_of(self, value: Input) -> Verdict:
        """Return the verdict on a decoded input."""
        return Verdict(None)

    def refuse_archive(self, path: str) -> None:
        """Raise UserError if packed and tar files cannot contain these inputs."""
        raise UserError(
            f"{printable(path)} contains 8-bit images; {self.inputs} must be separate files"
        )

    def common_problem(self, verdicts: Sequence[Verdict]) -> str | None:
        """Return a problem of all files together, although each is usable, or None."""
        return None

    @property
    def varies(self) -> bool:
        """Whether predictions depend on the padding of inputs of different sizes."""
        return False

    def resized(self, size: int) -> "Modality":
        """Return the modality with inputs of `size` positions along each dimension."""
        raise UserError(f"size = {size}: {self.inputs} cannot be resized")

    def of_one_size(self) -> "Modality":
        """Return the modality with inputs resized to the network's size."""
        return self

    def before_crop(self) -> "Modality":
        """Return the modality with the resized inputs before the crop to the network's size."""
        return self

    def uncropped(self) -> "Modality":
        """Return the modality with whole inputs, as they are stored, if they are cropped."""
        return self

    def padded_size(self, sample: Sample, transform: Transform) -> tuple[int, ...]:
        """Return the size of a batch with this sample; samples of other sizes are not in it."""
        return self.size

    @property
    def inputs(self) -> str:
        """What its samples are called in messages."""
        return f"{self.noun}s"

    @property
    def ndim(self) -> int:
        """Number of dimensions with positions."""
        return len(self.size)

    @property
    def sequence(self) -> bool:
        """Whether inputs differ in length, which batches then have."""
        return False

    @property
    def per_length_unit(self) -> int:
        """Number of units of Items.lengths in one `length_unit`."""
        return 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one input of the network; of sequences the longest."""
        return self.size if self.tokens else (self.channels, *self.size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.size
        return height, width

    @property
    def grid(self) -> Space | None:
        """The grid of volumes; None for others."""
        return None

    def data_fields(self) -> dict[str, str]:
        """Return the fields of [data] without which files like these cannot be read."""
        return {}

    def input_steps(self, dense: bool) -> list[dict[str, Any]]:
        """Return the steps from a stored input to the network's, in order, for exported files.

        dense: whether the network predicts positions, so that the whole input is kept
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `kind` is the modality's name."""
        values = TypeAdapter(type(self)).dump_python(self, mode="json", exclude_none=True)
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Modality":
        """The inverse of `to_dict`, without `kind`. Raises UserError for invalid keys."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            reasons = [
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".lstrip(": ")
                for problem in error.errors(include_url=False)
            ]
            raise UserError(f"preprocessing of kind {cls.kind!r}: {'; '.join(reasons)}") from None
