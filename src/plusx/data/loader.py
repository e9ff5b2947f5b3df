"""From a Dataset to batches: ordered, augmented, collated, normalised, on the device.

A sample's input is a function of (seed, epoch, sample number) alone, whether this process, a worker
process or a BatchMaker (of data in memory, of packed files) computes it.
"""

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from plusx.data.batch import Batch, Collated
from plusx.data.buffer_pool import BufferPool
from plusx.data.dataset import BatchRequest, Dataset, as_split
from plusx.data.image_file import UnreadableInput, quiet
from plusx.data.readers.open import as_dataset
from plusx.data.rng import CounterRNG, SampleRNG
from plusx.data.sample import Sample
from plusx.data.sampler import VIEWS, Sampler, check_sampler, epoch_order
from plusx.data.transforms.pixels import PIXEL_STEPS
from plusx.data.transforms.transform import Transform
from plusx.errors import UserError


# seconds that one batch of a worker may take
TIMEOUT = 120.0
# workers pass batches in shared memory, and hang if it is full
_SHARED = "/dev/shm"
_MIN_SHARED = 2**20  # free bytes
MAX_WORKERS = 256  # a process each
_MORE_SHARED = "free some, set data.workers = 0, or use docker run --shm-size 2g in a container"


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
    """Return an iterator over the batches of one epoch.

    For several epochs use a Loader, which keeps its worker processes.

    epoch: determines the order and the random numbers
    start: number of batches to skip, which are not computed
    Other arguments and errors: see Loader.
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
    return _Epoch(_closing(loader, loader.epoch(epoch, start)))


def _closing(loader: "Loader", batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    with loader:
        yield from batches


class _Epoch(Iterator[Batch]):
    """The batches of one epoch. Raises UserError if it is iterated over a second time."""

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches, self._over = batches, False

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except StopIteration:
            if self._over:
                raise UserError(
                    "the batches of this epoch are over: call plusx.batches again, or write "
                    "loader = plusx.Loader(...) and loop over loader.epoch(n)"
                ) from None
            self._over = True
            raise

    def close(self) -> None:
        """End the worker processes before the epoch is over."""
        self._over = True
        self._batches.close()


class Loader:
    """Batches of a data set, epoch after epoch: `for batch in loader.epoch(3): ...`

    data: the name of a data set, a folder, a CSV, or a Dataset
    split: "train", "validation", "test" or "all"; None: that of the Dataset, or else "train". Only
        "train" is shuffled and augmented
    augment: the words of augmentation (plusx.data.transforms.words)
    size: height and width of images, if `data` is not a Dataset
    sampler: order of the training samples (plusx.data.sampler). With "pk", `samples_per_class`
        samples of a class are adjacent; with "views", the two copies of a sample, which are
        augmented differently: a batch then has 2 * batch_size inputs
    part: (rank, world size): the part of every batch that this process gets. The parts, in the
        order of the ranks, form the batch of a single process; their lengths differ by at most one
    drop_last: None drops a last training batch only if a rank's part has fewer than two samples,
        for which batch norm has no variance. In other splits, a last batch with fewer samples than
        ranks goes to the first ranks
    channels_last: memory layout of images from files; the values are the same
    timeout: seconds that a worker may take for a batch

    Worker processes live until close() or the end of a `with` block.
    Raises UserError for an invalid augmentation, split or number; RuntimeError, with the name of
    the file, if a file can no longer be decoded, or a worker dies or exceeds `timeout`.
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
            raise UserError(f"part = {part}: a rank from 0, and a larger world size")
        if not train and dataset.modality.evaluation_batch_size is not None:
            batch_size = self.world * dataset.modality.evaluation_batch_size
        if batch_size < self.world:
            raise UserError(
                f"batch_size = {batch_size}: {self.world} processes cannot share so few samples"
            )
        self.count = len(dataset) * (dataset.items.patches if train else 1)
        if self.count < self.world:
            raise UserError(
                f"{dataset.name} has {self.count:,} samples: too few for {self.world} processes"
            )
        if not 0 <= workers <= MAX_WORKERS:
            raise UserError(f"workers = {workers}: from 0 to {MAX_WORKERS}")
        if train:
            check_sampler(sampler, dataset.labels, batch_size, samples_per_class)
        else:
            # metrics and predictions must not depend on the decoder chosen for training
            dataset = dataset.with_reference_decoder()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.sampler, self.samples_per_class = sampler, samples_per_class
        self.views = VIEWS if train and sampler == "views" else 1  # inputs of a sample in a batch
        self.transform = dataset.modality.transform(
            augment,
            train=train,
            annotated=dataset.spatial,
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
        smallest = rest // self.world  # part of a last batch
        return full + (smallest > 1 or (smallest == 1 and (self.drop_last is False or not full)))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. No epoch can follow."""
        self._workers = None
        if self._maker is not None:
            self._maker.close()
        self._samples.close()
        self._closed = True

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, from batch `start` on."""
        if self._closed:
            raise UserError("the loader is closed")
        order, size = self._epoch_order(number), self.batch_size
        parts = [
            _part(order[batch * size : (batch + 1) * size], self.rank, self.world).ravel()
            for batch in range(start, len(self))
        ]
        if self._maker is not None:
            for samples, inputs in zip(parts, self._maker.batches(parts, number)):
                yield self._finish(samples, self._labelled(samples, inputs), number)
            return
        with self._naming_samples():
            for samples, collated in zip(parts, self._collated(parts, number)):
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
            self.dataset.items.batch_lengths,
        )

    def _labelled(self, samples: np.ndarray, inputs: Tensor) -> Collated:
        indices = torch.from_numpy(samples % len(self.dataset))
        return Collated(inputs, *self.dataset.targets(indices))

    def _collated(self, parts: Sequence[np.ndarray], epoch: int) -> Iterator[Collated]:
        if self._workers is None:
            for samples in parts:
                keys = [(epoch, int(sample)) for sample in samples]
                yield self._samples.collate(self._samples.__getitems__(keys))
            return
        self._order.epoch = epoch
        self._order.batches = parts
        yield from self._workers

    def _finish(self, samples: np.ndarray, collated: Collated, epoch: int) -> Batch:
        """Return the normalised batch on the device, with the words that act on such batches."""
        inputs = collated.inputs.to(self.device, non_blocking=True)
        if self._maker is None or not self._maker.normalised:
            inputs = self.dataset.modality.normalise(inputs, self._pool)
        for number, word in enumerate(self.transform.words):
            if word.kind in PIXEL_STEPS:
                rng = CounterRNG.of(self.seed, epoch, samples).at(number)
                PIXEL_STEPS[word.kind](inputs, word, rng)
        return collated.batch(inputs, self.device)

    def _start(self, workers: int, timeout: int | float) -> "DataLoader[Collated]":
        _refuse_full_shared_memory(workers)
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
            # unused by workers; without it torch would advance the global generator
            generator=torch.Generator(),
        )

    @contextmanager
    def _naming_samples(self) -> Iterator[None]:
        """Adds the names of the current samples to the error of a worker that died."""
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            # a broken pipe can be reported before the death itself
            of_worker = "DataLoader " in str(error) or not issubclass(type(error), RuntimeError)
            if self._workers is None or not of_worker:
                raise
            try:
                during = self._in_work()
            except RuntimeError:  # torch's SIGCHLD handler can raise once here too
                during = self._in_work()
            raise RuntimeError(
                f"a data worker died or hung{during}{_shared_memory()}: {error}"
            ) from error

    def _in_work(self) -> str:
        samples = [sample for sample in self._samples.in_work.tolist() if sample >= 0]
        names = [self.dataset.describe(sample % len(self.dataset)) for sample in samples]
        return f" while processing {', '.join(names)}" if names else ""


def _shared_memory() -> str:
    """Return a hint for messages if little shared memory is free, else ""."""
    free = _free_shared_memory()
    if free is None or free > 2**28:
        return ""
    return f" ({_SHARED} has {free:,} bytes free: {_MORE_SHARED})"


def _refuse_full_shared_memory(workers: int) -> None:
    """Raise RuntimeError if shared memory is full, since workers would hang."""
    free = _free_shared_memory()
    if free is not None and free < _MIN_SHARED:
        raise RuntimeError(
            f"workers = {workers} need shared memory, and {_SHARED} has {free:,} bytes free: "
            f"{_MORE_SHARED}"
        )


def _free_shared_memory() -> int | None:
    """Return the free bytes of shared memory; None if there is no such file system."""
    try:
        status = os.statvfs(_SHARED)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


class SampleError(RuntimeError):
    """A sample that can no longer be decoded."""


def _part(samples: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Return one rank's part of the samples; the first ranks get the remainder. Views of a sample,
    which form a row, stay together."""
    size, remainder = divmod(len(samples), world)
    begin = rank * size + min(rank, remainder)
    return samples[begin : begin + size + (rank < remainder)]


@dataclass
class _Order:
    """Batch sampler for the workers: lists of (epoch, sample number)."""

    epoch: int = 0
    batches: Sequence[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for samples in self.batches:
            yield [(self.epoch, int(sample)) for sample in samples]

    def __len__(self) -> int:
        return len(self.batches)


# decoded samples that all loaders of a process cache, so that small data sets are decoded once
CACHE_BYTES = 2**29


class SampleMaker(TorchDataset[Sample]):
    """The transformed samples of a data set, indexed by (epoch, sample number)."""

    def __init__(self, dataset: Dataset, transform: Transform, seed: int, workers: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        # the sample that each worker is working on
        self.in_work = torch.full((0,), -1, dtype=torch.int64)
        self._cache = _SampleCache(workers)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0][0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Sample, str]]:
        """Return samples, each with "", or only the first error: an empty sample and a message."""
        worker = get_worker_info()
        samples: list[tuple[Sample, str]] = []
        with quiet:
            for epoch, number in keys:
                if worker is not None:
                    self.in_work[worker.id] = number
                index = number % len(self.dataset)
                try:
                    samples.append((self._make(epoch, number, index), ""))
                except (UnreadableInput, OSError) as error:
                    reason = f"{self.dataset.describe(index)} cannot be used any more: {error}"
                    return [(Sample(torch.zeros(0)), reason)]
        if worker is not None:
            self.in_work[worker.id] = -1
        return samples

    def _make(self, epoch: int, number: int, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self.transform.begin(self.dataset.read(index))
            if self.transform.keeps_decoded:
                self._cache.keep(index, sample)
        sample = self.transform.augment(sample, SampleRNG.of(self.seed, epoch, number))
        return sample if sample.anchors is None else replace(sample, anchors=None)

    def collate(self, samples: Sequence[tuple[Sample, str]]) -> Collated:
        """Return the samples as one batch, or the error."""
        if samples[-1][1]:
            return Collated(torch.zeros(0), None, error=samples[-1][1])
        return self.dataset.modality.collate([sample for sample, _ in samples], self.transform)

    def close(self) -> None:
        """Empty the cache."""
        self._cache.clear()


class _SampleCache:
    """Decoded samples, within a budget in bytes that all caches of the process share."""

    used: ClassVar[int] = 0

    def __init__(self, workers: int) -> None:
        self.budget = CACHE_BYTES // workers
        self.samples: dict[int, Sample] = {}
        self.bytes = 0

    def get(self, index: int) -> Sample | None:
        return self.samples.get(index)

    def keep(self, index: int, sample: Sample) -> None:
        size = sample.tensor.nbytes
        if sample.masks is not None:
            size += sample.masks.nbytes
        if _SampleCache.used + size <= self.budget:
            _SampleCache.used += size
            self.bytes += size
            self.samples[index] = sample

    def clear(self) -> None:
        _SampleCache.used -= self.bytes
        self.bytes = 0
        self.samples.clear()


def begin_worker(number: int) -> None:
    """Reset the signal handlers that a worker process inherits."""
    # those of a run save a checkpoint and exit
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
