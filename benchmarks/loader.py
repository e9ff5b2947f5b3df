"""Images a second of the in-memory loader against torchvision's CIFAR10 with its v2 transforms.

    python benchmarks/loader.py [--rounds 20] [--out results/loader.json]

Both pad by 4, crop to 32 x 32, flip and normalise batches of 128 in float32. The peer is
torchvision.datasets.CIFAR10 behind a DataLoader without workers, with v2 transforms on Pillow
images, as its documentation shows. First it is checked that both compute the same: with our
places and flips, torchvision's functions give our pixels bit for bit; and with its own draws its
batches have our shape, type, mean and deviation. Then rounds of both alternate in one process,
with 1 and with 2 threads. The interval is a bootstrap over rounds. Real images are used where
PLUSX_DATA has cifar-10-batches-bin, else random ones of the same shape: both do the same work
on any pixels. Ends with status 1 if the lower end of the ratio is below 8 at any number of threads.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from plusx import store
from plusx.data.draws import Draws, permutation
from plusx.data.loader import Loader
from plusx.data.sample import Preprocessing, Source
from plusx.data.source import open_data
from plusx.data.windows import crop_places, half
from plusx.run.environment import environment
from plusx.run.folder import now


BATCH = 128
PEER_BATCHES = 12  # a round of the peer, about a second
OUR_BATCHES = 240
FLOOR = 8.0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images() -> tuple[Source, str]:
    """50,000 images of 32 x 32, and where they are from."""
    try:
        return open_data("cifar10", validation=0), "cifar10"
    except OSError:
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=random)
        source = Source(
            name="random",
            split="train",
            classes=tuple("0123456789"),
            labels=torch.randint(0, 10, (50_000,), generator=random),
            preprocessing=Preprocessing((32, 32), 3, MEAN, STD),
            images=pixels,
        )
        return source, "random pixels"


def peer_loader(source: Source) -> "DataLoader[tuple[torch.Tensor, torch.Tensor]]":
    """torchvision's own dataset class over the same images; but for its reading of files."""
    assert source.images is not None
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = source.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = source.labels.tolist()
    dataset.target_transform = None
    dataset.transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)


def check_same(source: Source, ours: Loader, peer: "DataLoader[Any]") -> None:
    """Raise AssertionError unless both compute the same."""
    batch = next(ours.epoch(0))
    order = permutation(len(source), 0, 0)[:BATCH]
    draws = Draws.of(0, 0, order)
    tops, lefts = crop_places(draws.at(1), (8, 8))
    flips = half(draws.at(2))
    for index, number in enumerate(order):
        image = functional.to_pil_image(source[int(number)].image)
        image = functional.crop(functional.pad(image, [4]), tops[index], lefts[index], 32, 32)
        if flips[index]:
            image = functional.horizontal_flip(image)
        pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        assert torch.equal(batch.inputs[index], functional.normalize(pixels, MEAN, STD))
        assert int(batch.targets[index]) == int(source.labels[number])
    theirs, targets = next(iter(peer))
    assert theirs.shape == batch.inputs.shape
    assert theirs.dtype == batch.inputs.dtype
    assert targets.dtype == batch.targets.dtype
    many = torch.cat([batch.inputs for batch, _ in zip(ours.epoch(1), range(8))])
    others = torch.cat([inputs for (inputs, _), _ in zip(peer, range(8))])
    assert abs(float(many.mean() - others.mean())) < 0.1
    assert abs(float(many.std() - others.std())) < 0.1


def rate(batches: Any, count: int) -> float:
    """Images a second over the first `count` batches."""
    began, seen = time.perf_counter(), 0
    for _, batch in zip(range(count), batches):
        seen += len(batch[0] if isinstance(batch, list | tuple) else batch)
    return seen / (time.perf_counter() - began)


def interval(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of the rounds' ratios."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def measure(ours: Loader, peer: "DataLoader[Any]", threads: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    rate(ours.epoch(0), OUR_BATCHES)
    rate(peer, 2)
    pairs = []
    for number in range(rounds):
        # who begins alternates too
        turns = [("ours", ours.epoch(number), OUR_BATCHES), ("peer", peer, PEER_BATCHES)]
        found = {
            name: rate(batches, count) for name, batches, count in turns[:: 1 - 2 * (number % 2)]
        }
        pairs.append((found["ours"], found["peer"]))
    ratios = [mine / theirs for mine, theirs in pairs]
    low, high = interval(ratios)
    return {
        "threads": threads,
        "ratio": statistics.median(ratios),
        "interval": [low, high],
        "ours_images_per_second": statistics.median(mine for mine, _ in pairs),
        "peer_images_per_second": statistics.median(theirs for _, theirs in pairs),
        "ratios": ratios,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="the in-memory loader against torchvision's")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    said = parser.parse_args()
    source, name = images()
    source = source.with_preprocessing(Preprocessing((32, 32), 3, MEAN, STD))
    ours = Loader(source, split="train", augment="pad4 crop flip", batch_size=BATCH)
    peer = peer_loader(source)
    torch.manual_seed(0)
    check_same(source, ours, peer)
    rows = [measure(ours, peer, threads, said.rounds) for threads in (1, 2)]
    for row in rows:
        low, high = row["interval"]
        print(
            f"{row['threads']} threads: {row['ours_images_per_second']:,.0f} images/s, peer "
            f"{row['peer_images_per_second']:,.0f}; ratio {row['ratio']:.1f} ({low:.1f} to "
            f"{high:.1f})"
        )
    if said.out is not None:
        surroundings = environment(torch.device("cpu"))
        versions = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
        store.write_json(
            said.out,
            {
                "value": rows[0]["ratio"],
                "spread": rows[0]["interval"],
                "seeds": [0],
                "rows": rows,
                "data": name,
                "command": shlex.join(["python", "benchmarks/loader.py", *sys.argv[1:]]),
                "recipe": None,
                "versions": {name: surroundings.pop(name) for name in versions},
                "machine": surroundings,
                "date": now(),
            },
        )
    return int(min(row["interval"][0] for row in rows) < FLOOR)


if __name__ == "__main__":
    sys.exit(main())
