"""Data sets with a name: published and synthetic ones."""

from collections.abc import Callable

from plusx.data.dataset import Dataset, Split
from plusx.data.sets.published import (
    CIFAR10,
    CIFAR100,
    FASHION_MNIST,
    SVHN,
    SVHN_EXTRA,
    Validation,
    open_cifar,
    open_digits,
    open_idx,
    open_svhn,
)
from plusx.data.sets.synthetic import open_bands, open_mosaics


# name: (split, validation, seed) -> Dataset
NAMED_SETS: dict[str, Callable[[Split, Validation, int], Dataset]] = {
    "digits": open_digits,
    "fashion-mnist": lambda split, validation, seed: open_idx(FASHION_MNIST, split, validation),
    "cifar10": lambda split, validation, seed: open_cifar(CIFAR10, split, validation),
    "cifar100": lambda split, validation, seed: open_cifar(CIFAR100, split, validation),
    "svhn": lambda split, validation, seed: open_svhn(SVHN, split, validation),
    "svhn-extra": lambda split, validation, seed: open_svhn(SVHN_EXTRA, split, validation),
    "mosaics": open_mosaics,
    "bands": open_bands,
}
