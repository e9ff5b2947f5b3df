"""The published data sets digits, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN.

Each has an official training and test part. Validation images are held out of the training part: by
default the last 5,000, as in He et al. 2015 (section 4.2), and of SVHN as many of each class.
"""

import gzip
import io
import math
import struct
import tarfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from plusx import store
from plusx.data.dataset import Dataset, MemoryItems, Split
from plusx.data.modality import ImageModality
from plusx.data.sets.download import Download, data_folders, fetch
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
    records: int  # of each training file
    test_records: int  # of the test file
    label_bytes: int  # the last of them is the fine label
    classes: tuple[str, ...] | str  # or the name of the file that lists them
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Idx:
    """A set as four gzipped IDX files (LeCun's format)."""

    name: str
    folders: tuple[str, ...]  # under each of the data folders
    elsewhere: tuple[Path, ...]
    files: tuple[Download, Download, Download, Download]  # train images, labels; test ...
    counts: tuple[int, int]
    size: tuple[int, int]
    classes: tuple[str, ...]
    mean: float
    std: float


@dataclass(frozen=True)
class MatFile:
    """Cropped digits as a MATLAB file: X (32, 32, 3, n), and y (n, 1), where 10 stands for 0."""

    download: Download
    count: int
    held_out: int = 0  # images of each class for validation by default


@dataclass(frozen=True)
class Svhn:
    """The Street View House Numbers (Netzer et al. 2011) in the official cropped format."""

    name: str
    train: tuple[MatFile, ...]
    test: MatFile
    mean: tuple[float, float, float] = (0.4377, 0.4438, 0.4728)  # of train_32x32.mat
    std: tuple[float, float, float] = (0.1980, 0.2010, 0.1970)


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


def _fashion(name: str, md5: str, max_bytes: int) -> Download:
    host = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
    return Download(f"{host}/{name}.gz", f"md5:{md5}", max_bytes)


FASHION_MNIST = Idx(
    name="fashion-mnist",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    elsewhere=(Path("/usr/share/datasets/fashion-mnist"),),
    files=(
        _fashion("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 30_000_000),
        _fashion("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 100_000),
        _fashion("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 6_000_000),
        _fashion("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 100_000),
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


def _svhn(name: str, md5: str, max_bytes: int) -> Download:
    return Download(f"http://ufldl.stanford.edu/housenumbers/{name}", f"md5:{md5}", max_bytes)


_SVHN_FOLDERS = ("svhn", "SVHN")  # under each of the data folders
_SVHN_TRAIN = MatFile(
    _svhn("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 200_000_000), 73_257, held_out=400
)
_SVHN_EXTRA = MatFile(
    _svhn("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7", 1_400_000_000),
    531_131,
    held_out=200,
)
_SVHN_TEST = MatFile(
    _svhn("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 70_000_000), 26_032
)
SVHN = Svhn("svhn", (_SVHN_TRAIN,), _SVHN_TEST)
# the extra images are easier: they come first, so that images held out from the end are harder
SVHN_EXTRA = Svhn("svhn-extra", (_SVHN_EXTRA, _SVHN_TRAIN), _SVHN_TEST)


def published_set(path: str | Path) -> str:
    """Return the name of the set whose files are in a folder, also in Python's version, or ""."""
    folder = Path(path)
    for cifar in (CIFAR10, CIFAR100):
        pickles = cifar.folder.replace("-batches-bin", "-batches-py").replace("-binary", "-python")
        is_named = folder.name in (cifar.folder, pickles) and folder.is_dir()
        if is_named and not any(item.is_dir() for item in folder.iterdir()):
            return cifar.name
    if (folder / _SVHN_TRAIN.download.name).is_file():
        return SVHN.name
    labels = FASHION_MNIST.files[3]  # MNIST's files have the same names
    file = folder / labels.name
    is_fashion = file.is_file() and file.stat().st_size <= labels.max_bytes
    return FASHION_MNIST.name if is_fashion and labels.check(file.read_bytes()) else ""


def open_digits(split: Split, validation: Validation, seed: int) -> Dataset:
    """Open the digits of scikit-learn: 1,797 scans of 8 x 8 (Alpaydin and Kaynak 1998).

    There is no official split. The default is stratified and the same for every seed: 1,200 train,
    300 validation, 297 test; another `validation` is taken from the first 1,500 by the seed.
    """
    table = _digits_table()
    pixels = table[:, :-1].reshape(-1, 1, 8, 8)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = stratified_order(labels, 0)
    others, test = np.sort(order[297:]), np.sort(order[:297])
    if validation is None:
        held = np.isin(others, order[297:597]).nonzero()[0]
    else:
        held = held_out(labels[torch.from_numpy(others)], validation, seed)
    indices = {
        "train": np.delete(others, held),
        "validation": others[held],
        "test": test,
        "all": np.arange(len(labels)),
    }[split]
    chosen = torch.from_numpy(indices)
    return Dataset(
        name="digits",
        split=split,
        classes=tuple("0123456789"),
        labels=labels[chosen],
        modality=ImageModality((8, 8), 1, (0.3053,), (0.3760,), resize="stretch"),
        items=MemoryItems(images[chosen]),
    )


def _digits_table() -> np.ndarray:
    """Return scikit-learn's digits: rows of 64 pixels of 0 to 16 and the label.

    Its file is read directly, since importing scikit-learn takes more than a second.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


def open_cifar(cifar: Cifar, split: Split, validation: Validation) -> Dataset:
    """Open a CIFAR set from its folder or archive; else download it."""
    folder = _cifar_folder(cifar)

    def read(names: tuple[str, ...], records: int) -> Part:
        return _joined([_read_cifar(folder / name, cifar, records) for name in names])

    classes = cifar.classes
    if isinstance(classes, str):
        classes = tuple((folder / classes).read_text("utf-8", "replace").split())
    if len(classes) != cifar.num_classes:
        raise UserError(f"{folder}: {len(classes)} names for {cifar.num_classes} classes")
    modality = ImageModality((32, 32), 3, cifar.mean, cifar.std, resize="stretch")
    train = read(cifar.train, cifar.records) if split != "test" else None
    test = read(cifar.test, cifar.test_records) if split in ("test", "all") else None
    return _dataset(cifar.name, split, validation, classes, modality, train, test)


def _cifar_folder(cifar: Cifar) -> Path:
    names = (*cifar.train, *cifar.test)
    for root in data_folders():
        for folder in (root / cifar.folder, root / cifar.name / cifar.folder):
            if all((folder / name).is_file() for name in names):
                return folder
    target = store.cache_folder() / "data" / cifar.folder
    archives = [root / cifar.archive.name for root in data_folders()]
    archive = next((path for path in archives if path.is_file()), None)
    archive = archive or fetch(cifar.archive, target.parent)
    data = archive.read_bytes()
    if not cifar.archive.check(data):
        raise UserError(f"{archive} is not the published file ({cifar.archive.digest})")
    if isinstance(cifar.classes, str):
        names = (*names, cifar.classes)
    with store.atomic_folder(target) as partial, tarfile.open(fileobj=io.BytesIO(data)) as members:
        for name in names:
            content = members.extractfile(f"{cifar.folder}/{name}")
            assert content is not None
            store.write_bytes(partial / name, content.read())
    return target


def _read_cifar(path: Path, cifar: Cifar, records: int) -> Part:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    length = cifar.label_bytes + 3072
    raw = np.fromfile(path, np.uint8)
    if raw.size != records * length:
        raise UserError(f"{path} is corrupt: {raw.size:,} bytes, {records * length:,} are expected")
    rows = raw.reshape(records, length)
    labels = rows[:, cifar.label_bytes - 1]
    _check_labels(path, labels, cifar.num_classes)
    return rows[:, cifar.label_bytes :].reshape(-1, 3, 32, 32), labels


def open_idx(idx: Idx, split: Split, validation: Validation) -> Dataset:
    """Open a set of IDX files from their folder; else download them."""
    folder = _idx_folder(idx)

    def read(images: Download, labels: Download, count: int) -> Part:
        pixels = read_idx(folder / images.name, (count, *idx.size))
        numbers = read_idx(folder / labels.name, (count,))
        _check_labels(folder / labels.name, numbers, len(idx.classes))
        return pixels[:, None], numbers

    modality = ImageModality(idx.size, 1, (idx.mean,), (idx.std,), resize="stretch")
    train = read(*idx.files[:2], idx.counts[0]) if split != "test" else None
    test = read(*idx.files[2:], idx.counts[1]) if split in ("test", "all") else None
    return _dataset(idx.name, split, validation, idx.classes, modality, train, test)


def _idx_folder(idx: Idx) -> Path:
    below = [root / name for root in data_folders() for name in idx.folders]
    for folder in (*below, *idx.elsewhere):
        if all((folder / item.name).is_file() for item in idx.files):
            return folder
    target = store.cache_folder() / "data" / idx.folders[0]
    for item in idx.files:
        if not (target / item.name).is_file():
            fetch(item, target)
    return target


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read the uint8 numbers of a gzipped IDX file, which must have this shape."""
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) as file:
            data = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is corrupt: {error}") from error
    if not data.startswith(header) or len(data) != size:
        raise UserError(f"{path} is corrupt: it is not an IDX file of bytes {shape}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def open_svhn(svhn: Svhn, split: Split, validation: Validation) -> Dataset:
    """Open SVHN from its folder; else download it.

    By default the last 400 images of each class of train_32x32.mat validate, and the last 200 of
    each class of extra_32x32.mat, as many as in Huang et al. 2016 (section 4); they draw them.
    """
    files = {"test": (svhn.test,), "all": (*svhn.train, svhn.test)}.get(split, svhn.train)
    images, labels = _read_svhn(files)
    if split in ("train", "validation"):
        held = np.zeros(len(labels), bool)
        if validation is None:
            held[_last_of_each_class(labels, files)] = True
        else:
            held[len(labels) - validation_count(len(labels), validation) :] = True
        chosen = held if split == "validation" else ~held
        images, labels = images[chosen], labels[chosen]
    return Dataset(
        name=svhn.name,
        split=split,
        classes=tuple("0123456789"),
        labels=torch.from_numpy(labels.astype(np.int64)),
        modality=ImageModality((32, 32), 3, svhn.mean, svhn.std, resize="stretch"),
        items=MemoryItems(torch.from_numpy(images)),
    )


def _last_of_each_class(labels: np.ndarray, files: tuple[MatFile, ...]) -> np.ndarray:
    """Return the indices of the held-out images of files that are joined."""
    indices, start = [], 0
    for file in files:
        part = labels[start : start + file.count]
        indices += [start + np.flatnonzero(part == k)[-file.held_out :] for k in range(10)]
        start += file.count
    return np.concatenate(indices)


def _read_svhn(files: tuple[MatFile, ...]) -> Part:
    images = np.empty((sum(file.count for file in files), 3, 32, 32), np.uint8)
    labels, start = [], 0
    for file in files:
        path = _svhn_file(file)
        pixels, numbers = _read_mat(path, file.count)
        wrong = np.flatnonzero((numbers < 1) | (numbers > 10))
        if wrong.size:
            raise UserError(
                f"{path} is corrupt: label {numbers[wrong[0]]} of image {wrong[0]} is outside "
                "1 to 10"
            )
        images[start : start + file.count] = pixels.transpose(3, 2, 0, 1)
        labels.append(numbers % 10)
        start += file.count
    return images, np.concatenate(labels)


def _svhn_file(file: MatFile) -> Path:
    for root in data_folders():
        for folder in _SVHN_FOLDERS:
            path = root / folder / file.download.name
            if path.is_file():
                return path
    return fetch(file.download, store.cache_folder() / "data" / _SVHN_FOLDERS[0])


def _read_mat(path: Path, count: int) -> Part:
    """Return X (32, 32, 3, n) and y (n,) of a MATLAB file of version 5."""
    from scipy.io import loadmat, whosmat

    expected = {"X": ((32, 32, 3, count), "uint8"), "y": ((count, 1), "uint8")}
    try:
        # from the headers, before anything is decompressed
        stored = {name: (tuple(shape), kind) for name, shape, kind in whosmat(path)}
        for name, (shape, kind) in expected.items():
            if stored.get(name) != (shape, kind):
                raise ValueError(
                    f"{name} is {_array_text(stored.get(name))}, not {kind} of {shape}"
                )
        arrays = loadmat(path, variable_names=tuple(expected))
    except Exception as error:  # the reader raises errors of any kind for corrupt files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is corrupt: {error or type(error).__name__}") from error
    return arrays["X"], arrays["y"][:, 0]


def _array_text(stored: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if stored is None else f"{stored[1]} of {stored[0]}"


def _check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        raise UserError(
            f"{path} is corrupt: label {labels[wrong[0]]} of image {wrong[0]} is outside "
            f"0 to {num_classes - 1}"
        )


def _joined(parts: list[Part]) -> Part:
    images, labels = zip(*parts)
    return np.concatenate(images), np.concatenate(labels)


def _dataset(
    name: str,
    split: Split,
    validation: Validation,
    classes: tuple[str, ...],
    modality: ImageModality,
    train: Part | None,
    test: Part | None,
) -> Dataset:
    """Return a split of an official training part, whose last samples validate, and a test part."""
    parts = [] if test is None else [test]
    if train is not None and split != "all":
        images, labels = train
        default = 5000 if len(labels) >= 50_000 else 0.1
        held_out = validation_count(len(labels), default if validation is None else validation)
        end = len(labels) - held_out
        chosen = slice(end) if split == "train" else slice(end, None)
        parts = [(images[chosen], labels[chosen])]
    elif train is not None:
        parts = [train, *parts]
    images, labels = _joined(parts)
    return Dataset(
        name=name,
        split=split,
        classes=classes,
        labels=torch.from_numpy(labels.astype(np.int64)),
        modality=modality,
        items=MemoryItems(torch.from_numpy(images)),
    )
