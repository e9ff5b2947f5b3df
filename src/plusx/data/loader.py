"""From a Dataset to batches: ordered, augmented, collated, normalised, on the device.

A sample's input is a function of (seed, epoch, sample number) whoever makes it: this process, a
worker process, or a batch maker of the data set (sets in memory and packed ones).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from plusx.data.batch import Batch
from plusx.data.buffer_pool import BufferPool
from plusx.data.collate import Collated
from plusx.data.dataset import BatchRequest, Dataset, as_split
from plusx.data.readers.open import as_dataset
from plusx.data.rng import CounterRNG
from plusx.data.sampler import Sampler, check_sampler, epoch_order
from plusx.data.transforms.pixels import PIXEL_STEPS
from plusx.data.worker import SampleMaker, begin_worker
from plusx.errors import UserError


# seconds that one batch of a worker may take
TIMEOUT = 120.0


def batches(
    data: str | Path | Dataset,
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
    """The batches of one epoch of a Loader, which has the same arguments and is for several epochs:
    its workers live as long as it does.

    epoch     another epoch has another order and other random numbers
    start     how many batches of the epoch to leave out, without doing their work
    """
    loader = Loader(
        data,
        split=split,
        augment=augment,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        device=device,
        drop_last=drop_last,
        size=size,
        part=part,
    )
    return _closing(loader, loader.epoch(epoch, start))


def _closing(loader: "Loader", batches: Iterator[Batch]) -> Iterator[Batch]:
    with loader:
        yield from batches


class Loader:
    """Batches of a data set, epoch after epoch: `for batch in loader.epoch(3): ...`

    data        a set's name, a folder, a CSV, or a Dataset
    split       "train" (of a Dataset: its own split), "validation", "test" or "all". Only "train"
                is shuffled and augmented
    augment     the words of augmentation (plusx.data.transforms.words)
    size        of the images, where data is not yet a Dataset
    sampler     orders the samples of training (plusx.data.sampler); with "pk",
                `samples_per_class` of a class stand together
    part        (rank, world): the share of every batch that this process gets. The shares, in the
                order of the ranks, are the batch that one process alone would have, and differ in
                length by one at most
    drop_last   None leaves out a last training batch only where a share of it is of one sample, of
                which batch norm knows no variance, or of none. Of a last batch of another split
                that has fewer samples than there are ranks, the last ranks have one batch less
    channels_last   memory layout of images of files, as they come from decoders; the values are
                the same
    timeout     seconds that a batch of a worker may take

    Worker processes live until close(), or to the end of a `with` block.
    Raises UserError for a wrong augmentation, split or number; RuntimeError that names the file
    where one cannot be decoded any more, or where a worker dies or exceeds `timeout`.
    """

    def __init__(
        self,
        data: str | Path | Dataset,
        *,
        split: str | None = None,
        augment: str = "",
        batch_size: int = 128,
        seed: int = 0,
        workers: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool | None = None,
        timeout: int | float = TIMEOUT,
        part: tuple[int, int] = (0, 1),
        channels_last: bool = False,
        sampler: Sampler = "uniform",
        samples_per_class: int = 4,
        size: int | None = None,
    ) -> None:
        dataset = as_dataset(data, split=split, seed=seed, size=size)
        self.split = dataset.split if split is None else as_split(split)
        train = self.split == "train"
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: at least 1")
        self.rank, self.world = part
        if not 0 <= self.rank < self.world:
            raise UserError(f"part = {part}: a rank from 0 on, and a world that is larger")
        if not train and dataset.modality.most_at_a_time is not None:
            batch_size = self.world * dataset.modality.most_at_a_time
        if batch_size < self.world:
            raise UserError(
                f"batch_size = {batch_size}: {self.world} processes cannot share so few samples"
            )
        self.count = len(dataset) * (dataset.items.patches if train else 1)
        if self.count < self.world:
            raise UserError(
                f"{dataset.name} has {self.count:,} samples: too few for {self.world} processes"
            )
        if workers < 0:
            raise UserError(f"workers = {workers}: at least 0")
        if train:
            check_sampler(sampler, dataset.labels, batch_size, samples_per_class)
        else:
            # figures and predictions are of the same pixels, whatever was quicker in training
            dataset = dataset.with_reference_decoder()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.sampler, self.samples_per_class = sampler, samples_per_class
        self.transform = dataset.modality.transform(
            augment,
            train=train,
            annotated=dataset.annotations is not None,
            stored=dataset.in_memory,
            channels_last=channels_last,
        )
        request = BatchRequest(
            modality=dataset.modality,
            transform=self.transform,
            seed=seed,
            device=self.device,
            threads=workers,
            timeout=float(timeout),
        )
        self._maker = dataset.items.batch_maker(request)
        self._samples = SampleMaker(dataset, self.transform, seed, max(1, workers))
        self._order = _Order()
        self._pool = BufferPool()
        self._closed = False
        self._workers: DataLoader[Collated] | None = None
        if workers and self._maker is None:
            self._workers = self._start(workers, timeout)

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        full, rest = divmod(self.count, self.batch_size)
        if self.drop_last:
            return full
        if self.split != "train":
            return full + (rest > self.rank)
        smallest = rest // self.world  # share of a last batch
        return full + (smallest > 1 or (smallest == 1 and (self.drop_last is False or not full)))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; there is no further epoch."""
        self._workers = None
        if self._maker is not None:
            self._maker.close()
        self._samples.close()
        self._closed = True

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on."""
        if self._closed:
            raise UserError("the loader is closed")
        order, size = self._epoch_order(number), self.batch_size
        shares = [
            _share(order[batch * size : (batch + 1) * size], self.rank, self.world)
            for batch in range(start, len(self))
        ]
        if self._maker is not None:
            for samples, inputs in zip(shares, self._maker.batches(shares, number)):
                yield self._finish(samples, self._labelled(samples, inputs), number)
            return
        with self._naming_samples():
            for samples, collated in zip(shares, self._collated(shares, number)):
                if collated.error:
                    raise SampleError(collated.error)
                yield self._finish(samples, collated, number)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self.split != "train":
            return np.arange(self.count)
        return epoch_order(
            self.sampler,
            self.dataset.labels,
            self.seed,
            epoch,
            self.batch_size,
            self.samples_per_class,
            self.dataset.items.patches,
        )

    def _labelled(self, samples: np.ndarray, inputs: Tensor) -> Collated:
        labels = self.dataset.labels
        indices = torch.from_numpy(samples % len(self.dataset))
        return Collated(inputs, labels.index_select(0, indices.to(labels.device)))

    def _collated(self, shares: Sequence[np.ndarray], epoch: int) -> Iterator[Collated]:
        if self._workers is None:
            for samples in shares:
                keys = [(epoch, int(sample)) for sample in samples]
                yield self._samples.collate(self._samples.__getitems__(keys))
            return
        self._order.epoch = epoch
        self._order.batches = shares
        yield from self._workers

    def _finish(self, samples: np.ndarray, collated: Collated, epoch: int) -> Batch:
        """A batch on the device, normalised, with the words that act on normalised pixels done."""
        inputs = collated.inputs.to(self.device, non_blocking=True)
        if self._maker is None or not self._maker.normalised:
            inputs = self.dataset.modality.normalise(inputs, self._pool)
        for number, word in enumerate(self.transform.words):
            if word.kind in PIXEL_STEPS:
                rng = CounterRNG.of(self.seed, epoch, samples).at(number)
                PIXEL_STEPS[word.kind](inputs, word, rng)
        return collated.batch(inputs, self.device)

    def _start(self, workers: int, timeout: int | float) -> "DataLoader[Collated]":
        self._samples.in_work = torch.full((workers,), -1, dtype=torch.int64)
        self._samples.in_work.share_memory_()
        samples: TorchDataset[Any] = self._samples
        return DataLoader(
            samples,
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=self._samples.collate,
            timeout=timeout,
            worker_init_fn=begin_worker,
            persistent_workers=True,
            # workers draw nothing from it; without it the global generator would be advanced
            generator=torch.Generator(),
        )

    @contextmanager
    def _naming_samples(self) -> Iterator[None]:
        """The end of a worker names its sample, wherever in the epoch torch reports it."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            # its end can show in its pipe first
            of_worker = "DataLoader " in str(error) or not issubclass(type(error), RuntimeError)
            if self._workers is None or not of_worker:
                raise
            try:
                during = self._in_work()
            except RuntimeError:  # the signal can come here too, once
                during = self._in_work()
            raise RuntimeError(f"a data worker died or hung{during}: {error}") from error

    def _in_work(self) -> str:
        samples = [sample for sample in self._samples.in_work.tolist() if sample >= 0]
        names = [self.dataset.describe(sample % len(self.dataset)) for sample in samples]
        return f" while at work on {', '.join(names)}" if names else ""


class SampleError(RuntimeError):
    """A sample that cannot be decoded any more."""


def _share(samples: np.ndarray, rank: int, world: int) -> np.ndarray:
    """What belongs to one of `world` ranks: in their order, the first ones get what is left."""
    share, left = divmod(len(samples), world)
    begin = rank * share + min(rank, left)
    return samples[begin : begin + share + (rank < left)]


@dataclass
class _Order:
    """The batches that the workers are to make: lists of (epoch, sample number)."""

    epoch: int = 0
    batches: Sequence[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for samples in self.batches:
            yield [(self.epoch, int(sample)) for sample in samples]

    def __len__(self) -> int:
        return len(self.batches)
