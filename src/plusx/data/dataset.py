"""A data set: samples by index, with classes, annotations and a modality."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64, Num
from torch import Tensor

from plusx.data.annotations import Annotations, Texts
from plusx.data.batch import collate_targets
from plusx.data.image_file import Decoder, content_digest, printable, read_regular
from plusx.data.modality import Modality
from plusx.data.rng import CounterRNG
from plusx.data.sample import Input, Sample
from plusx.data.splits import split_of
from plusx.data.transforms.steps import resample
from plusx.data.transforms.transform import Transform
from plusx.data.transforms.windows import WINDOW_STEPS, Windows, gather
from plusx.errors import UserError, counted


Split = Literal["train", "validation", "test", "all"]
Labels = Int64[Tensor, "n"] | Float32[Tensor, "n k"]


class BatchMaker(ABC):
    """Computes the inputs of whole batches, if that is faster than sample by sample.

    normalised: whether the inputs are normalised
    """

    normalised: bool = False

    @abstractmethod
    def batches(self, samples: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        """Yield the inputs of the batches with these sample numbers."""

    def close(self) -> None:
        """Stop background work."""
        return


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What a Loader passes to a BatchMaker."""

    modality: Modality
    transform: Transform
    seed: int
    device: torch.device
    threads: int
    timeout: float


class Items(ABC):
    """The stored inputs of a data set; what a reader implements.

    paths: the files, if each input is a file
    patches: samples per item in an epoch of training
    of_one_size: whether inputs are in memory at the network's size
    """

    paths: list[str] | None
    patches: int
    of_one_size: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, modality: Modality) -> Sample:
        """Read one stored input. Raises UnreadableInput or OSError."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> "Items":
        """Return some items, in that order."""

    @abstractmethod
    def digest(self, root: str | None) -> bytes:
        """Return a digest of the content, with paths relative to `root`."""

    def name(self, index: int) -> str:
        """Return the name of an item that is not a file, for messages."""
        return f"sample {index}"

    def digests(self) -> list[str]:
        """Return texts that are equal for equal inputs; [] if unknown."""
        return []

    def groups(self) -> list[str]:
        """Return the group of each sample, such as the speaker; [] if unknown."""
        return []

    @property
    def lengths(self) -> Int64[np.ndarray, "n"] | None:
        """The lengths of sequences, in any unit; None if they are equal or unknown."""
        return None

    @property
    def batch_lengths(self) -> Int64[np.ndarray, "n"] | None:
        """The lengths by which a bucketed batch is sorted."""
        return self.lengths

    def fit(self, modality: Modality) -> "Items":
        """Return the items for a modality of another size."""
        return self

    def reference(self) -> "Items":
        """Return the items with the decoder of evaluation, instead of a faster one for training."""
        return self

    def batch_maker(self, request: BatchRequest) -> BatchMaker | None:
        """Return a maker of whole batches; None: samples are read one by one."""
        return None


@dataclass(frozen=True, eq=False)
class FileItems(Items):
    """Inputs that are one file each.

    contents: digests of the files (image_file.content_digest), if already computed
    """

    paths: list[str]
    decoder: Decoder = "pillow"
    contents: list[str] | None = None
    patches: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, modality: Modality) -> Sample:
        return stored_sample(modality.read_file(self.paths[index], self.decoder))

    def subset(self, indices: Sequence[int]) -> "Items":
        contents = self.contents
        return replace(
            self,
            paths=[self.paths[index] for index in indices],
            contents=None if contents is None else [contents[index] for index in indices],
        )

    def reference(self) -> "Items":
        return replace(self, decoder="pillow")

    def digests(self) -> list[str]:
        return self.contents or []

    def digest(self, root: str | None) -> bytes:
        """Return a digest of each file's name, its size, and 16 KiB at each end."""
        contents = self.contents
        if contents is None:
            contents = [content_digest(read_regular(path)) for path in self.paths]
        return paths_digest("".join(contents), self.paths, root)


def stored_sample(value: Input) -> Sample:
    """Return a sample without annotations."""
    if isinstance(value, torch.Tensor):
        return Sample(value, stored_size=tuple(value.shape[-2:]))
    return Sample(value, stored_size=value.size[::-1])


@dataclass(frozen=True, eq=False)
class MemoryItems(Items):
    """Inputs in memory, as one tensor."""

    images: Num[Tensor, "n c h w"]
    paths: list[str] | None = None
    patches: int = 1
    of_one_size = True

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, modality: Modality) -> Sample:
        return stored_sample(self.images[index].cpu())

    def name(self, index: int) -> str:
        return f"image {index}"

    def subset(self, indices: Sequence[int]) -> "Items":
        return replace(self, images=self.images[torch.as_tensor(indices, dtype=torch.int64)])

    def fit(self, modality: Modality) -> "Items":
        return replace(self, images=resample(self.images, modality.image_size))

    def digest(self, root: str | None) -> bytes:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        return digest.digest()

    def batch_maker(self, request: BatchRequest) -> "MemoryBatches | None":
        return MemoryBatches(self.images, request) if request.transform.batched else None


class MemoryBatches(BatchMaker):
    """Gathers batches from one tensor; augmentation only moves the windows."""

    def __init__(self, images: Tensor, request: BatchRequest) -> None:
        # moved to the device once, not batch by batch
        self.images, self.request = images.to(request.device), request

    def batches(self, samples: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
        transform, images = self.request.transform, self.images
        size = self.request.modality.image_size
        for numbers in samples:
            windows = Windows.whole(len(numbers), (images.shape[2], images.shape[3]))
            rng = CounterRNG.of(self.request.seed, epoch, numbers)
            for position, word in enumerate(transform.words):
                if word.kind in WINDOW_STEPS:
                    step = WINDOW_STEPS[word.kind]
                    windows = step(windows, word, rng.at(position), size)
            yield gather(images, numbers % len(images), windows)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Labelled samples of one split.

    labels: class numbers (n,) int64, -1 if unknown; with several labels per sample (n, k) float32
        of 0 and 1
    warnings: what was skipped or is unusual, with reasons
    root: paths are relative to it in fingerprints and messages. Paths that are not UTF-8 contain
        surrogate escapes; `printable` makes them printable
    rows: row numbers in a CSV, counted from 1 with its header
    """

    name: str
    split: Split
    classes: tuple[str, ...]
    labels: Labels
    modality: Modality
    items: Items
    annotations: Annotations | None = None
    warnings: list[str] = field(default_factory=list)
    root: str | None = None
    rows: list[int] | None = None

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.items)
        assert self.annotations is None or len(self.annotations) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Sample:
        """Read one stored sample. Raises UnreadableInput or OSError if its file is unusable."""
        index = range(len(self))[index]
        sample = self.items.read(index, self.modality)
        if self.annotations is not None:
            return self.annotations.add_to(sample, index)
        return replace(sample, target=self.labels[index] if self.multilabel else self.label(index))

    def label(self, index: int) -> int:
        """Return the class number of a sample, -1 if it is unknown."""
        return int(self.labels[index])

    def targets(self, indices: Int64[Tensor, "m"]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the collated targets of samples and their extras, without reading inputs."""
        if self.annotations is None:
            return self.labels.index_select(0, indices.to(self.labels.device)), {}
        empty = Sample(torch.empty(0))
        return collate_targets(
            [self.annotations.add_to(empty, index) for index in indices.tolist()]
        )

    @property
    def multilabel(self) -> bool:
        """Whether a sample can have several labels."""
        return self.labels.ndim == 2

    @property
    def in_memory(self) -> bool:
        """Whether inputs are in memory at the network's size."""
        return self.items.of_one_size and self.paths is None and not self.spatial

    @property
    def spatial(self) -> bool:
        """Whether samples have boxes or masks, which have positions in the input."""
        return self.annotations is not None and self.annotations.spatial

    @property
    def noun(self) -> str:
        """What a sample is called in messages, such as "image" or "sentence pair"."""
        annotated = "" if self.annotations is None else self.annotations.noun
        return annotated or self.modality.noun

    @property
    def inputs(self) -> str:
        """What several samples are called in messages."""
        return f"{self.noun}s"

    @property
    def has_texts(self) -> bool:
        """Whether a text is the target of each sample, so that the classes are a vocabulary."""
        return self.annotations is not None and not self.annotations.spatial

    @property
    def paths(self) -> list[str] | None:
        """The files, if each input is a file."""
        return self.items.paths

    @property
    def has_boxes(self) -> bool:
        return self.annotations is not None and self.annotations.boxes is not None

    def subset(self, indices: Sequence[int] | Int64[Tensor, "m"]) -> "Dataset":
        """Return the samples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        listed = chosen.tolist()
        return replace(
            self,
            labels=self.labels[chosen],
            items=self.items.subset(listed),
            annotations=None if self.annotations is None else self.annotations.subset(listed),
            rows=None if self.rows is None else [self.rows[index] for index in listed],
            warnings=list(self.warnings),
        )

    def with_modality(self, modality: Modality) -> "Dataset":
        """Return the data set for a network with another size, mean or std."""
        items = self.items
        if self.in_memory:
            if modality.channels != self.modality.channels:
                raise UserError(
                    f"{self.name} has {self.modality.channels} channels, "
                    f"the network's input {modality.channels}"
                )
            items = items.fit(modality)
        return replace(self, modality=modality, items=items)

    def fitted(self) -> "Dataset":
        """Return the training set with a modality that is measured on it."""
        return replace(self, modality=self.modality.fitted(self))._checked()

    def like(self, modality: Modality, classes: tuple[str, ...] = ()) -> "Dataset":
        """Return the data set with the preprocessing of a network.

        If the classes are a vocabulary, that of the network, `classes`, replaces it.
        """
        dataset = self.with_modality(self.modality.like(modality))._checked()
        annotations = self.annotations
        if annotations is None or annotations.spatial or not classes:
            return dataset
        annotations = annotations.with_classes(classes)
        if isinstance(annotations, Texts) and (outside := list(annotations.outside())):
            index, tokens = outside[0]
            more = f" and in {counted(len(outside) - 1, 'more text')}" if outside[1:] else ""
            raise UserError(
                f"{self.name} {self.split}: the network has no {', '.join(map(repr, tokens))}, in "
                f"{annotations.texts[index]!r} of {self.describe(index)}{more}: its characters "
                "are those of its training set or [data] alphabet"
            )
        return replace(dataset, classes=classes, annotations=annotations)

    def _checked(self) -> "Dataset":
        """Return the data set with the warnings of its modality."""
        warnings = self.modality.warnings(self)
        return replace(self, warnings=[*self.warnings, *warnings]) if warnings else self

    def with_reference_decoder(self) -> "Dataset":
        """Return the data set with the decoder of evaluation instead of a faster one."""
        return replace(self, items=self.items.reference())

    def position_counts(self) -> Int64[Tensor, "k"]:
        """Return the number of positions of each class. Raises UserError without masks."""
        counts = None if self.annotations is None else self.annotations.counts
        if counts is None:
            raise UserError(f"{self.name} has no masks, which give the class of each position")
        return counts.sum(0)

    def describe(self, index: int) -> str:
        """Return the name of a sample for messages: its path, its row, or its index."""
        if self.paths is None:
            return f"{self.name} {self.split}, {self.items.name(index)}"
        path = printable(self.paths[index], self.root)
        return path if self.rows is None else f"row {self.rows[index]} ({path})"

    def fingerprint(self) -> str:
        """Return a sha256 of the classes, labels, annotations and content."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # renaming a folder does not change the data set
        name = "" if self.paths is not None else self.name
        header = (name, self.split, self.classes, tuple(self.labels.shape))
        digest = hashlib.sha256(repr(header).encode())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        if self.annotations is not None:
            digest.update(self.annotations.digest(self.root))
        digest.update(self.items.digest(self.root))
        return digest.hexdigest()


def images_of(dataset: Dataset) -> Num[Tensor, "n c h w"]:
    """Return the images of a data set in memory as one tensor."""
    assert isinstance(dataset.items, MemoryItems)
    return dataset.items.images


def paths_digest(content: str, paths: Sequence[str], root: str | None) -> bytes:
    """Return a digest of a content's digest and of paths relative to root."""
    digest = hashlib.sha256(content.encode())
    for path in paths:
        digest.update(os.fsencode(os.path.relpath(path, root) if root else path) + b"\0")
    return digest.digest()


def as_split(text: str) -> Split:
    """Return the split of a usual name ("val", "valid"). Raises UserError for other names."""
    name = split_of(text) or text
    if name not in get_args(Split):
        raise UserError(f"split {text!r}: allowed are {', '.join(get_args(Split))}")
    return name  # type: ignore[return-value]
