"""Images per second of a folder of JPEGs, plain and packed, against torchvision's ImageFolder.

    python benchmarks/folders.py [--rounds 9] [--tiny] [--out results/benchmark_folders.json]

All loaders produce batches of 64 random resized crops of 224 x 224, flipped with probability 0.5
and normalised, in float32. The peer is torchvision's ImageFolder in a DataLoader: `v1` with the
classic transforms, as in its ImageNet recipe and PyTorch's examples; `v2` with transforms.v2 on
Pillow images; `v2 tensors` on uint8 tensors, which torchvision's documentation recommends as
fastest. Ours are the folder with Pillow, the folder with simplejpeg (data.decoder), and the packed
folder (`plusx pack`), each also in channels_last, the layout of `plusx train`.

The folder is generated from a seed in a temporary folder: JPEGs of 500 x 375 or 375 x 500 at
quality 90, half of them crops of the two photographs in scikit-learn, half coloured noise of
several scales. Before the timing, the outputs are compared: with our crops and flips, torchvision's
functions produce our pixels within one of 255 levels (with simplejpeg within a few); in evaluation
the packed file has the folder's pixels bit for bit; and shapes, dtypes and labels are equal. Then
epochs alternate in one process: with no workers and one thread, and with two workers and two
threads. The cost of packing is recorded. Exits with status 1 if a target is missed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import RESULTS, SEED, Estimate, in_turns, load, median, ratio, record
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.data.modality import IMAGENET_MEAN, IMAGENET_STD
from plusx.data.readers.open import open_data
from plusx.data.readers.packing import pack
from plusx.data.rng import CounterRNG, SampleRNG, permutation
from plusx.data.transforms.steps import random_window


SIZE = 224
BATCH = 64
CLASSES = 4
AUGMENT = "resizedcrop flip"
PEERS = ("v1", "v2", "v2 tensors")
# the smallest ratios required, with two workers
TARGETS = {
    ("pillow", "v1"): 1.5,
    ("pillow", "v2"): 1.5,
    ("simplejpeg", "v1"): 2.0,
    ("packed", "v1"): 10.0,
    ("packed", "v2"): 10.0,
}
PACKED_RATE = 2000.0  # images per second and core, without workers


def make_folder(root: Path, count: int) -> None:
    """Write `count` JPEGs into each of four class folders."""
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(SEED)
    for number in range(CLASSES):
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for index in range(count):
            size = (500, 375) if random.random() < 0.7 else (375, 500)
            image = texture(random, size) if index % 2 else window(random, photos, size)
            image.save(folder / f"{index:05}.jpg", quality=90)


def window(
    random: np.random.Generator, photos: list[Image.Image], size: tuple[int, int]
) -> Image.Image:
    """A random crop of a photograph."""
    photo = photos[int(random.integers(len(photos)))]
    scale = random.uniform(0.5, 0.85)
    width, height = int(size[0] * scale), int(size[1] * scale)
    left = int(random.integers(photo.width - width + 1))
    top = int(random.integers(photo.height - height + 1))
    crop = photo.crop((left, top, left + width, top + height))
    return crop.resize(size, Image.Resampling.BICUBIC)


def texture(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Noise of several scales, coarse scales stronger, as in photographs."""
    total = np.full((size[1], size[0], 3), 128.0)
    for step in (64, 16, 4, 1):
        shape = (size[1] // step + 1, size[0] // step + 1, 3)
        noise = Image.fromarray(random.integers(0, 256, shape).astype(np.uint8))
        total += (np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) - 128.0) * step**0.5 / 9
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def peer_transform(kind: str) -> Any:
    """torchvision's transforms, in the order of its documentation."""
    if kind == "v1":
        return v1.Compose(
            [
                v1.RandomResizedCrop(SIZE),
                v1.RandomHorizontalFlip(),
                v1.ToTensor(),
                v1.Normalize(IMAGENET_MEAN[3], IMAGENET_STD[3]),
            ]
        )
    crop = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    first = [v2.PILToTensor(), *crop] if kind == "v2 tensors" else [*crop, v2.PILToTensor()]
    return v2.Compose(
        [
            *first,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN[3], IMAGENET_STD[3]),
        ]
    )


def peer_loader(root: Path, kind: str, workers: int) -> "DataLoader[Any]":
    return DataLoader(
        ImageFolder(str(root), peer_transform(kind)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def check_same(folder: Dataset, quick: Dataset, packed: Dataset) -> dict[str, float]:
    """The largest differences by loader, in levels of 255.

    Raises ValueError if the loaders do not compute the same batches.
    """
    order = permutation(len(folder), SEED, 0)[:BATCH]
    draws = CounterRNG.of(SEED, 0, order)
    flips = draws.at(1).coin()
    differences = {}
    for name, source, limit in (("pillow", folder, 1), ("simplejpeg", quick, 40)):
        batch = next(our_loader(source, 0, False).epoch(0))
        levels = torch.tensor(IMAGENET_STD[3])[:, None, None] * 255
        furthest, average = 0.0, 0.0
        for place, number in enumerate(order.tolist()):
            assert folder.paths is not None
            with Image.open(folder.paths[number], formats=("JPEG",)) as opened:
                image = opened.convert("RGB")
            rng = SampleRNG.of(SEED, 0, number).at(0)
            top, left, tall, wide = random_window(rng, image.height, image.width)
            image = functional.resized_crop(
                image, top, left, tall, wide, [SIZE, SIZE], antialias=True
            )
            image = functional.horizontal_flip(image) if flips[place] else image
            pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
            expected = functional.normalize(pixels, IMAGENET_MEAN[3], IMAGENET_STD[3])
            difference = ((batch.inputs[place] - expected).abs() * levels).double()
            furthest = max(furthest, float(difference.max()))
            average = max(average, float(difference.mean()))
            if int(batch.known_targets[place]) != int(folder.labels[number]):
                raise ValueError(f"{name}: another label at {number}")
        if furthest > limit + 1e-3 or average > 0.5:
            raise ValueError(f"{name}: pixels differ by up to {furthest}, by {average} on average")
        differences[name] = furthest
    few = range(min(BATCH, len(folder)))
    ours, theirs = (
        torch.cat([batch.inputs for batch in Loader(each.subset(few), split="test").epoch(0)])
        for each in (packed, folder)
    )
    if not torch.equal(ours, theirs):
        raise ValueError("packed: evaluation does not see the folder's pixels")
    return differences


def our_loader(source: Dataset, workers: int, channels_last: bool) -> Loader:
    return Loader(
        source,
        split="train",
        augment=AUGMENT,
        batch_size=BATCH,
        seed=SEED,
        workers=workers,
        drop_last=False,
        channels_last=channels_last,
    )


class Epochs:
    """Epochs of one contender: each call reads every image once."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader = loader
        self.count = count
        self.number = 0

    def __call__(self) -> None:
        self.number += 1
        batches: Iterator[Any] = (
            self.loader.epoch(self.number) if isinstance(self.loader, Loader) else iter(self.loader)
        )
        shape: tuple[int, ...] = ()
        count = 0
        for batch in batches:
            inputs = batch.inputs if isinstance(self.loader, Loader) else batch[0]
            assert inputs.dtype == torch.float32
            shape = tuple(inputs.shape[1:])
            count += len(inputs)
        if (count, shape) != (self.count, (3, SIZE, SIZE)):
            raise ValueError(f"an epoch of {count} images of {shape}")


def measure(
    root: Path, sources: dict[str, Dataset], workers: int, threads: int, rounds: int
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    torch.set_num_threads(threads)
    count = len(sources["packed"])
    contenders = {f"peer {kind}": Epochs(peer_loader(root, kind, workers), count) for kind in PEERS}
    ours = {}
    for name, source in sources.items():
        for layout in (False, True):
            label = f"{name}, channels last" if layout else name
            ours[label] = our_loader(source, workers, layout)
            contenders[label] = Epochs(ours[label], count)
    for contender in contenders.values():
        contender()  # starts the workers and fills the disk cache
    times = in_turns(contenders, rounds)
    for loader in ours.values():
        loader.close()
    ratios = {
        f"{name} / {kind}": ratio(times[f"peer {kind}"].wall, times[name].wall)
        for name in ours
        for kind in PEERS
    }
    return {
        "workers": workers,
        "threads": threads,
        "rounds": rounds,
        "images": count,
        "images_per_second": {
            name: asdict(rate_of(count, taken.wall)) for name, taken in times.items()
        },
        "ratios": {name: asdict(each) for name, each in ratios.items()},
        "processor_time_ratios": {
            f"{name} / {kind}": asdict(
                ratio(times[f"peer {kind}"].processor, times[name].processor)
            )
            for name in ours
            for kind in PEERS
        },
    }, ratios


def rate_of(count: int, seconds: np.ndarray) -> Estimate:
    taken = median(seconds)
    return Estimate(count / taken.value, count / taken.high, count / taken.low)


def reached_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target with the ratio or rate reached, in the layout of `plusx train`."""
    targets = []
    for row in rows:
        if row["workers"] == 2:
            for (name, kind), target in TARGETS.items():
                what = f"{name}, channels last / {kind}"
                reached = row["ratios"][what]
                targets.append({"what": f"{what}, 2 workers", "target": target, "reached": reached})
        elif row["threads"] == 1:
            rate = row["images_per_second"]["packed, channels last"]
            targets.append(
                {"what": "packed, images a second and core", "target": PACKED_RATE, "reached": rate}
            )
    return [{**each, "met": each["reached"]["low"] >= each["target"]} for each in targets]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="a folder of JPEGs, and packed, against ImageFolder"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_folders.json")
    parser.add_argument(
        "--tiny", action="store_true", help="one small round to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    rounds, images = (1, 16) if args.tiny else (args.rounds, args.images)
    load_before, threads_before = load(), torch.get_num_threads()
    cache = os.environ.get("PLUSX_CACHE")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["PLUSX_CACHE"] = f"{temporary}/cache"
        try:
            root, file = Path(temporary) / "folder", Path(temporary) / "folder.plusx"
            make_folder(root, images // CLASSES)
            packing = pack(root, file)
            sources = {
                "pillow": open_data(root, split="all"),
                "simplejpeg": open_data(root, split="all", decoder="simplejpeg"),
                "packed": open_data(file, split="all"),
            }
            sources = {name: replace(each, split="train") for name, each in sources.items()}
            differences = check_same(*sources.values())
            rows, estimates = [], {}
            # without workers one core does everything
            for workers, threads in [(0, 1)] if args.tiny else [(0, 1), (2, 2)]:
                row, ratios = measure(root, sources, workers, threads, rounds)
                rows.append(row)
                estimates |= {f"{name}, {workers} workers": each for name, each in ratios.items()}
        finally:
            os.environ.pop("PLUSX_CACHE")
            if cache is not None:
                os.environ["PLUSX_CACHE"] = cache
            torch.set_num_threads(threads_before)
    for row in rows:
        for name, each in row["images_per_second"].items():
            print(f"{row['workers']} workers  {name:28} {each['value']:8,.0f} images/s")
    for name, each in estimates.items():
        print(f"{name:44} {each}")
    targets = reached_targets(rows)
    for each in targets:
        verdict = "met" if each["met"] else "MISSED"
        print(f"{verdict:6} {each['what']}: {each['reached']['value']:.2f} of {each['target']}")
    columns = ("images", "side", "bytes", "source_bytes", "seconds", "images_per_second")
    rows[0]["packing"] = {name: packing[name] for name in columns}
    rows[0]["targets"] = targets
    record(
        args.out,
        rows,
        estimates,
        recipe={"augment": AUGMENT, "size": SIZE, "batch_size": BATCH, "rounds": rounds}
        | {
            "images": f"{images} JPEGs made from seed {SEED}: half of photographs, half of noise",
            "differences_in_levels": differences,
        },
        versions={name: version(name) for name in ("pillow", "simplejpeg")},
        load_before=load_before,
    )
    return int(not args.tiny and not all(each["met"] for each in targets))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
