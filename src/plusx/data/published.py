"""The published sets that have a name: digits, Fashion-MNIST, CIFAR-10 and CIFAR-100.

Each is an official training part and test part; validation is cut from the training part, by
default as the papers cut it: the last 5,000 images.
"""

from dataclasses import replace

import numpy as np
import torch

from plusx.data.sample import Preprocessing, Source, Split
from plusx.data.splits import held_out, stratified_order


def open_digits(split: Split, validation: float | int | None, seed: int) -> Source:
    """The digits of scikit-learn: 1,797 scans of 8 x 8 in 10 classes (Alpaydin and Kaynak 1998).

    They have no official split; ours is stratified and the same for every seed: 1,200 train,
    300 validate, 297 test.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = stratified_order(labels, 0)
    tests, trains = np.sort(order[:297]), order[297:]
    if validation is None:
        cut = np.sort(trains[:300]), np.sort(trains[300:])
    else:
        trains = np.sort(trains)
        chosen = held_out(labels[torch.from_numpy(trains)], validation, seed)
        cut = trains[chosen], np.delete(trains, chosen)
    parts = {"train": cut[1], "validation": cut[0], "test": tests, "all": np.arange(len(labels))}
    whole = Source(
        name="digits",
        split="all",
        classes=tuple("0123456789"),
        labels=labels,
        preprocessing=Preprocessing((8, 8), 1, (0.3053,), (0.3760,)),
        images=images,
    )
    return replace(whole.subset(torch.from_numpy(parts[split])), split=split)


PUBLISHED = {"digits": open_digits}
