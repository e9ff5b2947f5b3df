"""The published sets that have a name: digits, Fashion-MNIST, CIFAR-10 and CIFAR-100.

Each is an official training part and an official test part. Validation is cut from the training
part: its last 5,000 images unless said otherwise, as in He et al. 2015 (section 4.2).
"""

import gzip
import struct
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from plusx import store
from plusx.data.dataset import Dataset, MemoryItems, Split
from plusx.data.modality import ImageModality
from plusx.data.sets.download import Download, fetch, places, unpack
from plusx.data.splits import held_out, stratified_order, validation_count
from plusx.errors import UserError


Validation = float | int | None
Part = tuple[np.ndarray, np.ndarray]  # images (n, c, h, w) uint8, labels (n,) uint8


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) in the official binary version."""

    name: str
    folder: str
    archive: Download
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: int  # of one training file and of the test file: these two
    test_records: int
    label_bytes: int  # the last of them is the fine label
    classes: tuple[str, ...] | str  # or the name of the file that lists them
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Idx:
    """A set as four gzipped IDX files (LeCun's format)."""

    name: str
    folders: tuple[str, ...]  # under each of the places
    elsewhere: tuple[Path, ...]
    files: tuple[Download, Download, Download, Download]  # train images, labels; test ...
    counts: tuple[int, int]
    size: tuple[int, int]
    classes: tuple[str, ...]
    mean: float
    std: float


CIFAR10 = Cifar(
    name="cifar10",
    folder="cifar-10-batches-bin",
    archive=Download(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        200_000_000,
    ),
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    records=10_000,
    test_records=10_000,
    label_bytes=1,
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Cifar(
    name="cifar100",
    folder="cifar-100-binary",
    archive=Download(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        200_000_000,
    ),
    train=("train.bin",),
    test=("test.bin",),
    records=50_000,
    test_records=10_000,
    label_bytes=2,
    classes="fine_label_names.txt",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST = Idx(
    name="fashion-mnist",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),
    files=(
        Download(
            f"{_FASHION}train-images-idx3-ubyte.gz",
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            30_000_000,
        ),
        Download(
            f"{_FASHION}train-labels-idx1-ubyte.gz",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            100_000,
        ),
        Download(
            f"{_FASHION}t10k-images-idx3-ubyte.gz",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            6_000_000,
        ),
        Download(
            f"{_FASHION}t10k-labels-idx1-ubyte.gz",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
            100_000,
        ),
    ),
    counts=(60_000, 10_000),
    size=(28, 28),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=0.2860,
    std=0.3530,
)


def open_digits(split: Split, validation: Validation, seed: int) -> Dataset:
    """The digits of scikit-learn: 1,797 scans of 8 x 8 in 10 classes (Alpaydin and Kaynak 1998).

    They have no official split. Ours is stratified and the same for every seed: 1,200 train,
    300 validate, 297 test; another `validation` is drawn from the first 1,500 by the seed.
    """
    table = _digits_table()
    pixels = table[:, :-1].reshape(-1, 1, 8, 8)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = stratified_order(labels, 0)
    known, tests = np.sort(order[297:]), np.sort(order[:297])
    if validation is None:
        chosen = np.isin(known, order[297:597]).nonzero()[0]
    else:
        chosen = held_out(labels[torch.from_numpy(known)], validation, seed)
    indices = {
        "train": np.delete(known, chosen),
        "validation": known[chosen],
        "test": tests,
        "all": np.arange(len(labels)),
    }[split]
    return Dataset(
        name="digits",
        split=split,
        classes=tuple("0123456789"),
        labels=labels[torch.from_numpy(indices)],
        modality=ImageModality((8, 8), 1, (0.3053,), (0.3760,), resize="stretch"),
        items=MemoryItems(images[torch.from_numpy(indices)]),
    )


def _digits_table() -> np.ndarray:
    """The file that scikit-learn has its digits in: 64 pixels of 0 to 16 and the label, a row each.

    It is read from where it lies, for importing scikit-learn takes more than a second.
    """
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def open_cifar(described: Cifar, split: Split, validation: Validation) -> Dataset:
    """A CIFAR set from where it lies, else from its checked archive, else downloaded."""
    folder = _cifar_folder(described)
    parts = []
    if split != "test":
        parts += [
            _read_cifar(folder / name, described, described.records) for name in described.train
        ]
        parts = [_cut(_joined(parts), split, validation)]
    if split in ("test", "all"):
        parts += [
            _read_cifar(folder / name, described, described.test_records) for name in described.test
        ]
    classes = described.classes
    if isinstance(classes, str):
        lines = (folder / classes).read_text("utf-8", "replace").split()
        if len(lines) != described.num_classes:
            raise UserError(
                f"{folder / classes}: {len(lines)} names for {described.num_classes} classes"
            )
        classes = tuple(lines)
    modality = ImageModality((32, 32), 3, described.mean, described.std, resize="stretch")
    return _source(described.name, split, classes, modality, _joined(parts))


def _cifar_folder(described: Cifar) -> Path:
    needed = (*described.train, *described.test)
    for place in places():
        for folder in (place / described.folder, place / described.name / described.folder):
            if all((folder / name).is_file() for name in needed):
                return folder
    target = store.cache_folder() / "data" / described.folder
    for place in places():
        archive = place / described.archive.name
        if archive.is_file():
            break
    else:
        archive = fetch(described.archive, target.parent)
    if not described.archive.check(archive.read_bytes()):
        raise UserError(f"{archive} is not the published file ({described.archive.digest})")
    unpack(archive, target, most_bytes=250_000_000)
    return target


def _read_cifar(path: Path, described: Cifar, records: int) -> Part:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    length = described.label_bytes + 3072
    raw = np.fromfile(path, np.uint8)
    if raw.size != records * length:
        raise UserError(f"{path} is damaged: {raw.size:,} bytes, {records * length:,} are expected")
    rows = raw.reshape(records, length)
    labels = rows[:, described.label_bytes - 1]
    _check_labels(path, labels, described.num_classes)
    return rows[:, described.label_bytes :].reshape(-1, 3, 32, 32), labels


def open_idx(described: Idx, split: Split, validation: Validation) -> Dataset:
    """A set of IDX files from where they lie, else downloaded and checked."""
    names = [item.name for item in described.files]
    folder = _idx_folder(described)
    parts = []
    if split != "test":
        parts.append(_cut(_read_idx_pair(folder, names[:2], described, 0), split, validation))
    if split in ("test", "all"):
        parts.append(_read_idx_pair(folder, names[2:], described, 1))
    modality = ImageModality(
        described.size, 1, (described.mean,), (described.std,), resize="stretch"
    )
    return _source(described.name, split, described.classes, modality, _joined(parts))


def _idx_folder(described: Idx) -> Path:
    under = [place / name for place in places() for name in described.folders]
    for folder in (*under, *described.elsewhere):
        if all((folder / item.name).is_file() for item in described.files):
            return folder
    target = store.cache_folder() / "data" / described.folders[0]
    for item in described.files:
        if not (target / item.name).is_file():
            fetch(item, target)
    return target


def _read_idx_pair(folder: Path, names: list[str], described: Idx, part: int) -> Part:
    images = read_idx(folder / names[0], (described.counts[part], *described.size))
    labels = read_idx(folder / names[1], (described.counts[part],))
    _check_labels(folder / names[1], labels, len(described.classes))
    return images[:, None], labels


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 numbers of a gzipped IDX file that must have this shape."""
    size = 4 + 4 * len(shape) + int(np.prod(shape))
    try:
        with gzip.open(path) as file:
            data = file.read(size + 1)
            wanted = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
            if not data.startswith(wanted) or len(data) != size:
                raise UserError(f"{path} is damaged: it is no IDX file of bytes {shape}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return np.frombuffer(data, np.uint8, offset=len(wanted)).reshape(shape)


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        raise UserError(
            f"{path} is damaged: label {labels[wrong[0]]} of image {wrong[0]} is outside "
            f"0 to {num_classes - 1}"
        )


def _cut(part: Part, split: Split, validation: Validation) -> Part:
    """The training or the validation samples (the last ones) of an official training part."""
    images, labels = part
    if split == "all":
        return part
    if validation is None:
        validation = 5000 if len(labels) >= 50_000 else 0.1
    place = len(labels) - validation_count(len(labels), validation)
    if split == "train":
        return images[:place], labels[:place]
    return images[place:], labels[place:]


def _joined(parts: list[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    images, labels = zip(*parts)
    return np.concatenate(images), np.concatenate(labels)


def _source(
    name: str,
    split: Split,
    classes: tuple[str, ...],
    modality: ImageModality,
    part: Part,
) -> Dataset:
    images, labels = part
    return Dataset(
        name=name,
        split=split,
        classes=classes,
        labels=torch.from_numpy(labels.astype(np.int64)),
        modality=modality,
        items=MemoryItems(torch.from_numpy(np.array(images, order="C"))),
    )
