"""Images per second of data in memory, against torchvision's CIFAR10 with its v2 transforms.

    python benchmarks/loader.py [--rounds 15] [--tiny] [--out results/benchmark_loader.json]

All loaders pad by 4, crop to 32 x 32, flip and normalise batches of 128 in float32. The peer is
torchvision.datasets.CIFAR10 in a DataLoader with transforms.v2: `PIL` on Pillow images, as its
documentation shows, `tensors` on uint8 tensors, which it recommends as fastest, and `PIL, 2
workers`. Before the timing, the outputs are compared: with our crops and flips, torchvision's
functions produce our pixels bit for bit, and with their own random numbers the peers' batches have
our shape, dtype, mean and deviation. Then all alternate in one process, with 1 and with 2 threads,
each with epochs of about the same duration. The images are CIFAR-10 if PLUSX_DATA has
cifar-10-batches-bin, else random: the work does not depend on the pixels. Exits with status 1 if
the lower end of a ratio is below its target.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import RESULTS, Estimate, in_turns, load, median, ratio, record
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from plusx.data.dataset import Dataset, MemoryItems, images_of
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality
from plusx.data.readers.open import open_data
from plusx.data.rng import CounterRNG, permutation


BATCH = 128
AUGMENT = "pad4 crop flip"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# the smallest ratios required
TARGETS = {"PIL": 20.0, "tensors": 8.0, "PIL, 2 workers": 12.0}
WORKERS = {"PIL": 0, "tensors": 0, "PIL, 2 workers": 2}
# per round, chosen for about equal times
BATCHES = {"ours": 320, "PIL": 16, "tensors": 20, "PIL, 2 workers": 32}


def images() -> tuple[Dataset, str]:
    """50,000 images of 32 x 32, and their origin."""
    try:
        return open_data("cifar10", validation=0), "cifar10"
    except OSError:
        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=random)
        source = Dataset(
            name="random",
            split="train",
            classes=tuple("0123456789"),
            labels=torch.randint(0, 10, (50_000,), generator=random),
            modality=ImageModality((32, 32), 3, MEAN, STD),
            items=MemoryItems(pixels),
        )
        return source, "random pixels"


def peer_dataset(source: Dataset, kind: str) -> CIFAR10:
    """torchvision's own dataset class over the same images, without reading files."""
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data = images_of(source).permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = source.labels.tolist()
    dataset.target_transform = None
    crop = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    first = [v2.PILToTensor(), *crop] if kind == "tensors" else [*crop, v2.PILToTensor()]
    dataset.transform = v2.Compose(
        [*first, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    return dataset


def peer_loader(
    source: Dataset, kind: str = "PIL", count: int | None = None
) -> "DataLoader[tuple[torch.Tensor, torch.Tensor]]":
    """Batches of all images, or of the first `count`."""
    dataset: Any = peer_dataset(source, kind)
    workers = WORKERS[kind]
    return DataLoader(
        dataset if count is None else Subset(dataset, range(count)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def check_same(source: Dataset, ours: Loader, peer: "DataLoader[Any]") -> None:
    """Raise AssertionError unless both compute the same batches."""
    batch = next(ours.epoch(0))
    order = permutation(len(source), 0, 0)[:BATCH]
    draws = CounterRNG.of(0, 0, order)
    tops, lefts = (draws.at(1).below(9, side) for side in (0, 1))
    flips = draws.at(2).coin()
    for index, number in enumerate(order):
        image = source.read(int(number)).pillow
        image = functional.crop(functional.pad(image, [4]), tops[index], lefts[index], 32, 32)
        if flips[index]:
            image = functional.horizontal_flip(image)
        pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        assert torch.equal(batch.inputs[index], functional.normalize(pixels, MEAN, STD))
        assert int(batch.known_targets[index]) == int(source.labels[number])
    theirs, targets = next(iter(peer))
    assert theirs.shape == batch.inputs.shape
    assert theirs.dtype == batch.inputs.dtype
    assert targets.dtype == batch.known_targets.dtype
    many = torch.cat([batch.inputs for batch, _ in zip(ours.epoch(1), range(8))])
    others = torch.cat([inputs for (inputs, _), _ in zip(peer, range(8))])
    assert abs(float(many.mean() - others.mean())) < 0.1
    assert abs(float(many.std() - others.std())) < 0.1


def our_epochs(loader: Loader, count: int) -> Callable[[], None]:
    number = 0

    def epoch() -> None:
        nonlocal number
        number += 1
        seen = sum(len(batch) for batch, _ in zip(loader.epoch(number), range(count // BATCH)))
        assert seen == count

    return epoch


def peer_epochs(loader: "DataLoader[Any]", count: int) -> Callable[[], None]:
    def epoch() -> None:
        assert sum(len(inputs) for inputs, _ in loader) == count

    return epoch


def measure(
    source: Dataset, threads: int, rounds: int, share: float
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """One row of the result, and the ratios by the peer's name."""
    torch.set_num_threads(threads)
    counts = {name: max(1, round(share * many)) * BATCH for name, many in BATCHES.items()}
    ours = Loader(source, split="train", augment=AUGMENT, batch_size=BATCH)
    contenders = {"ours": our_epochs(ours, counts["ours"])}
    for kind in TARGETS:
        loader = peer_loader(source, kind, counts[kind])
        contenders[kind] = peer_epochs(loader, counts[kind])
    for contender in contenders.values():
        contender()
    times = in_turns(contenders, rounds)
    # seconds per image, since the epochs differ in length
    wall = {name: each.wall / counts[name] for name, each in times.items()}
    busy = {name: each.processor / counts[name] for name, each in times.items()}
    ratios = {kind: ratio(wall[kind], wall["ours"]) for kind in TARGETS}
    return {
        "threads": threads,
        "rounds": rounds,
        "images": counts,
        "images_per_second": {name: 1 / median(each).value for name, each in wall.items()},
        "ratios": {kind: asdict(each) for kind, each in ratios.items()},
        "processor_time_ratios": {
            # the processor time of persistent workers is known only after they end
            kind: asdict(ratio(busy[kind], busy["ours"]))
            for kind in TARGETS
            if not WORKERS[kind]
        },
        "targets": TARGETS,
    }, ratios


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Data in memory against torchvision's CIFAR10.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_loader.json")
    parser.add_argument(
        "--tiny", action="store_true", help="two small rounds to check that it runs, no targets"
    )
    args = parser.parse_args(arguments)
    load_before, threads_before = load(), torch.get_num_threads()
    source, name = images()
    source = source.with_modality(ImageModality((32, 32), 3, MEAN, STD))
    if args.tiny:
        source = source.subset(range(4096))
    torch.manual_seed(0)
    ours = Loader(source, split="train", augment=AUGMENT, batch_size=BATCH)
    for kind in TARGETS:
        check_same(source, ours, peer_loader(source, kind, 8 * BATCH))
    rows, estimates, missed = [], {}, []
    for threads in (1,) if args.tiny else (1, 2):
        row, ratios = measure(
            source, threads, 2 if args.tiny else args.rounds, 0.1 if args.tiny else 1.0
        )
        rows.append(row)
        for kind, each in ratios.items():
            estimates[f"{kind}, {threads} thread(s)"] = each
            rate = row["images_per_second"]
            print(
                f"{threads} thread(s): {rate['ours']:10,.0f} images/s, {kind:15} "
                f"{rate[kind]:8,.0f}; ratio {each} of {TARGETS[kind]}"
            )
            if each.low < TARGETS[kind]:
                missed.append(f"{kind}, {threads} thread(s)")
    torch.set_num_threads(threads_before)
    record(
        args.out,
        rows,
        estimates,
        recipe={"augment": AUGMENT, "batch_size": BATCH, "data": name, "missed": missed},
        versions={"pillow": version("pillow")},
        load_before=load_before,
    )
    for each in () if args.tiny else missed:
        print(f"missed: {each}", file=sys.stderr)
    return int(bool(missed) and not args.tiny)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
