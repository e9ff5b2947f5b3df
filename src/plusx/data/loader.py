"""From a Source to batches: ordered, augmented, normalised, on the device.

Sets in memory whose augmentation is done by the batch are gathered from one uint8 tensor. Files,
and sets whose augmentation is done image by image, go through worker processes where there are
any; windows of packed sets are cut in threads. A sample's pixels are always a function of (seed,
epoch, index).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plusx.data.augment import Plan, Word, plan, scene_plan
from plusx.data.bands import BandSamples, band_plan
from plusx.data.batch import Batch
from plusx.data.cutting import Cutter, can_cut
from plusx.data.draws import Draws, permutation
from plusx.data.on_batch import PIXEL_STEPS
from plusx.data.ordering import Sampling, check_sampling, epoch_order
from plusx.data.patches import Patches, VolumeSamples
from plusx.data.sample import Source, as_split
from plusx.data.samples import Failure, Samples, View, as_tensor, begin_worker, good, viewed
from plusx.data.scene_samples import Scenes, SceneSamples, blank_outside
from plusx.data.source import open_data
from plusx.data.spare import Spare
from plusx.data.windows import WINDOW_STEPS, Windows, seen
from plusx.errors import UserError


# seconds that one batch of a worker may take
TIMEOUT = 120.0

__all__ = ["Loader", "View", "as_tensor", "batches", "viewed"]


def batches(
    data: str | Path | Source,
    *,
    split: str | None = None,
    augment: str = "",
    batch_size: int = 128,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    device: str | torch.device = "cpu",
    drop_last: bool | None = None,
    start: int = 0,
    size: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The batches of one epoch; see Loader, which also keeps its workers from epoch to epoch.

    data      a set's name, a folder, a CSV, or a Source
    split     "train" (of a Source: its own split), "validation", "test" or "all". Only "train"
              is shuffled and augmented
    epoch     another epoch has another order and other draws
    start     how many batches of the epoch to leave out, without doing their work
    size      of the images, where data is not yet a Source
    part      (rank, world): the share of every batch that is this process's own; see Loader
    """
    if isinstance(data, Source):
        if size is not None and data.preprocessing.size != (size, size):
            raise UserError("size is chosen where the data is opened: open_data(..., size=)")
        source = data
    else:
        source = open_data(data, split=split or "train", seed=seed, size=size)
    loader = Loader(
        source,
        split=split,
        augment=augment,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        device=device,
        drop_last=drop_last,
        part=part,
    )
    return _closing(loader, loader.epoch(epoch, start))


def _closing(loader: "Loader", batches: Iterator[Batch]) -> Iterator[Batch]:
    with loader:
        yield from batches


class Loader:
    """Batches of a Source, epoch after epoch: `for batch in loader.epoch(3): ...`

    Worker processes live until close(), or to the end of a `with` block.

    Of a world of w processes, part (rank, w) is given rank's share of every batch of batch_size
    samples: the w shares, in the order of the ranks, are the batch that one process alone would
    have, and differ in length by one at most. The pixels are the same whoever makes them.

    drop_last None leaves out a last training batch only where a share of it is of one sample, of
    which batch norm knows no variance, or of none. Of a last batch of another split that has fewer
    samples than there are ranks, the last ranks have no share and one batch less.

    `channels_last` lays images of files out so, as they come from decoders; the values are the
    same. `sampling` orders the samples of training (data.ordering), `pictures` of a class together
    with "people". `view` is what a network sees of a file where the augmentation does not bring
    it to a size.
    Raises UserError for a wrong augmentation, split or number; RuntimeError that names the file
    where one cannot be decoded any more, or where a worker dies or takes over `timeout` seconds.
    """

    def __init__(
        self,
        source: Source,
        *,
        split: str | None = None,
        augment: str = "",
        batch_size: int = 128,
        seed: int = 0,
        workers: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool | None = None,
        timeout: int | float = TIMEOUT,
        view: View = "middle",
        part: tuple[int, int] = (0, 1),
        channels_last: bool = False,
        sampling: Sampling = "uniform",
        pictures: int = 4,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: at least 1")
        self.rank, self.world = part
        if not 0 <= self.rank < self.world:
            raise UserError(f"part = {part}: a rank from 0 on, and a world that is larger")
        if batch_size < self.world:
            raise UserError(
                f"batch_size = {batch_size}: {self.world} processes cannot share so few images"
            )
        if len(source) < self.world:
            raise UserError(
                f"{source.name} has {len(source):,} images: too few for {self.world} processes"
            )
        if workers < 0:
            raise UserError(f"workers = {workers}: at least 0")
        self.split = source.split if split is None else as_split(split)
        if self.split != "train":
            # figures and predictions are of the same pixels, whatever was quicker in training
            source = replace(source, decoder="pillow")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.timeout = timeout
        self.sampling, self.pictures = sampling, pictures
        if self.split == "train":
            check_sampling(sampling, source.labels, batch_size, pictures)
        said = augment if self.split == "train" else ""
        self._samples: Samples | BandSamples | SceneSamples | VolumeSamples
        if source.volumes is not None:
            train = self.split == "train"
            self.plan = Plan((), False, source.preprocessing.size)
            self._samples = VolumeSamples(source, said, seed, train)
            if not train:  # volumes are of any size
                self.batch_size = 1
        elif source.truth is not None:
            scenes = scene_plan(said, source.preprocessing.size if source.sized else None)
            self.plan = Plan(scenes.words, False, scenes.final or source.preprocessing.size)
            self._samples = SceneSamples(source, scenes, seed, workers)
        elif not source.preprocessing.pictures:
            steps = band_plan(said, source.preprocessing.size)
            self.plan = steps._replace(batched=source.in_memory)
            self._samples = (
                Samples(source, steps, seed, channels_last)
                if source.in_memory
                else BandSamples(source, steps, seed)
            )
        else:
            self.plan = plan(said, source.preprocessing.size, source.in_memory)
            words = (
                Word(view, None, view) if word.kind == "evaluate" else word
                for word in self.plan.words
            )
            self.plan = self.plan._replace(words=tuple(words))
            self._samples = Samples(source, self.plan, seed, channels_last)
        self._order = _Order()
        self._spare = Spare()
        self._closed = False
        self._cutter = (
            Cutter(
                source,
                self.plan,
                seed,
                threads=workers,
                channels_last=channels_last,
                timeout=timeout,
                normalised=self.device.type == "cpu",
            )
            if source.truth is None and source.volumes is None and can_cut(source, self.plan)
            else None
        )
        alone = self.plan.batched or self._cutter is not None
        self._workers = self._start(workers) if workers and not alone else None

    @property
    def count(self) -> int:
        """The number of samples of a whole epoch; of volumes that train, patches."""
        return len(self._samples)

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        full, rest = divmod(self.count, self.batch_size)
        if self.drop_last:
            return full
        if self.split != "train":
            return full + (rest > self.rank)
        each = rest // self.world  # what the smallest share of a last batch has
        return full + (each > 1 or (each == 1 and (self.drop_last is False or not full)))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; there is no further epoch."""
        self._workers = None
        if self._cutter is not None:
            self._cutter.close()
        self._closed = True

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on."""
        if self._closed:
            raise UserError("the loader is closed")
        train = self.split == "train"
        order = self._ordered(number) if train else np.arange(self.count)
        size = self.batch_size
        chosen = [
            _share(order[place * size : (place + 1) * size], self.rank, self.world)
            for place in range(start, len(self))
        ]
        images: Iterator[Tensor | Scenes | Patches]
        if self.plan.batched:
            images = (self._gathered(indices, number) for indices in chosen)
        elif self._cutter is not None:
            images = self._cutter.batches(chosen, number)
        elif self._workers is None:
            images = (self._stacked(indices, number) for indices in chosen)
        else:
            images = self._from_workers(self._workers, chosen, number)
        with self._naming_samples():
            for indices, pixels in zip(chosen, images):
                yield self._batch(indices, pixels, number)

    def _ordered(self, epoch: int) -> np.ndarray:
        if self.source.volumes is not None:
            return permutation(self.count, self.seed, epoch)
        labels, size = self.source.labels, self.batch_size
        return epoch_order(self.sampling, labels, self.seed, epoch, size, self.pictures)

    def _gathered(self, indices: np.ndarray, epoch: int) -> Tensor:
        stored = self._stored()
        windows = Windows.whole(len(indices), (stored.shape[2], stored.shape[3]))
        draws = Draws.of(self.seed, epoch, indices)
        size = self.source.preprocessing.size
        for place, word in enumerate(self.plan.words):
            if word.kind in WINDOW_STEPS:
                windows = WINDOW_STEPS[word.kind](windows, word, draws.at(place), size)
        return seen(stored, indices, windows)

    def _stored(self) -> Tensor:
        """The images of a set in memory, brought to the device once, and not batch by batch."""
        images = self.source.images
        assert images is not None
        if images.device != self.device:
            self.source = self.source.to(self.device)
            images = self.source.images
            assert images is not None
        return images

    def _stacked(self, indices: np.ndarray, epoch: int) -> Tensor | Scenes | Patches:
        places = [(epoch, int(index)) for index in indices]
        samples = self._samples
        if isinstance(samples, BandSamples):
            return good(samples.collate(samples.__getitems__(places)))
        if isinstance(samples, SceneSamples):
            return good(samples.collate(samples.__getitems__(places)))
        if isinstance(samples, VolumeSamples):
            return good(samples.collate(samples.__getitems__(places)))
        return good(samples.collate(samples.__getitems__(places)))

    def _batch(self, indices: np.ndarray, made: Tensor | Scenes | Patches, epoch: int) -> Batch:
        images = made.images if isinstance(made, Scenes | Patches) else made
        images = images.to(self.device, non_blocking=True)
        ready = self._cutter is not None and self._cutter.normalised
        pixels = images if ready else self.source.preprocessing.normalise(images, self._spare)
        for place, word in enumerate(self.plan.words):
            if word.kind in PIXEL_STEPS:
                PIXEL_STEPS[word.kind](pixels, word, Draws.of(self.seed, epoch, indices).at(place))
        if isinstance(made, Scenes):
            blank_outside(pixels, made.extents)
            return Batch(pixels, made.targets, extras=made.extras).to(self.device)
        if isinstance(made, Patches):
            return Batch(pixels, made.targets.to(self.device, non_blocking=True))
        labels = self.source.labels
        targets = labels.index_select(0, torch.from_numpy(indices).to(labels.device))
        return Batch(pixels, targets.to(self.device, non_blocking=True))

    def _start(self, workers: int) -> "DataLoader[Tensor | Scenes | Patches | Failure]":
        self._samples.working_on = torch.full((workers,), -1, dtype=torch.int64)
        self._samples.working_on.share_memory_()
        samples: Dataset[Any] = self._samples
        return DataLoader(
            samples,
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=self._samples.collate,
            timeout=self.timeout,
            worker_init_fn=begin_worker,
            persistent_workers=True,
            # workers draw nothing from it; without it the global generator would be moved on
            generator=torch.Generator(),
        )

    def _from_workers(
        self,
        workers: "DataLoader[Tensor | Scenes | Patches | Failure]",
        chosen: list[np.ndarray],
        epoch: int,
    ) -> Iterator[Tensor | Scenes | Patches]:
        self._order.epoch = epoch
        self._order.batches = chosen
        for images in workers:
            yield good(images)

    @contextmanager
    def _naming_samples(self) -> Iterator[None]:
        """A worker's end names its sample, wherever in the epoch torch tells of it."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:  # its end can show in its pipe first
            of_worker = isinstance(error, OSError | EOFError) or "DataLoader " in str(error)
            if self._workers is None or not of_worker:
                raise
            try:
                during = self._at_work()
            except RuntimeError:  # the signal can come here too, once
                during = self._at_work()
            raise RuntimeError(f"a data worker died or hung{during}: {error}") from error

    def _at_work(self) -> str:
        at_work = self._samples.working_on.tolist()
        names = [self.source.where(index) for index in at_work if index >= 0]
        return f" while at work on {', '.join(names)}" if names else ""


def _share(indices: np.ndarray, rank: int, world: int) -> np.ndarray:
    """What belongs to one of `world` ranks: in their order, the first ones get what is left."""
    each, left = divmod(len(indices), world)
    begin = rank * each + min(rank, left)
    return indices[begin : begin + each + (rank < left)]


@dataclass
class _Order:
    """The batches that the workers are to make: lists of (epoch, index)."""

    epoch: int = 0
    batches: Sequence[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices in self.batches:
            yield [(self.epoch, int(index)) for index in indices]

    def __len__(self) -> int:
        return len(self.batches)
