"""Reads and transforms samples one by one, in the main process or in a worker."""

import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from plusx.data.collate import Collated, collate
from plusx.data.dataset import Dataset
from plusx.data.image_file import UnreadableImage, quiet
from plusx.data.rng import SampleRNG
from plusx.data.sample import Sample
from plusx.data.transforms.transform import Transform


# of decoded samples that all loaders of a process cache: small annotated sets are decoded once
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
        """Samples, each with "" or an error message; those after the first error are left out."""
        worker = get_worker_info()
        samples: list[tuple[Sample, str]] = []
        with quiet:
            for epoch, number in keys:
                if worker is not None:
                    self.in_work[worker.id] = number
                index = number % len(self.dataset)
                try:
                    samples.append((self._make(epoch, number, index), ""))
                except (UnreadableImage, OSError) as error:
                    reason = f"{self.dataset.describe(index)} cannot be used any more: {error}"
                    return [(Sample(torch.zeros(0)), reason)]
        if worker is not None:
            self.in_work[worker.id] = -1
        return samples

    def _make(self, epoch: int, number: int, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self.transform.begin(self.dataset.read(index))
            if self.transform.annotated and self.transform.patches is None:
                self._cache.keep(index, sample)
        sample = self.transform.augment(sample, SampleRNG.of(self.seed, epoch, number))
        return sample if sample.anchors is None else replace(sample, anchors=None)

    def collate(self, samples: Sequence[tuple[Sample, str]]) -> Collated:
        """The samples as one batch, or the error of the last one."""
        if samples[-1][1]:
            return Collated(torch.zeros(0), None, error=samples[-1][1])
        return collate([sample for sample, _ in samples], self.transform)

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
