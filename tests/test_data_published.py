"""The published sets: found where they lie, or fetched and checked, or refused with the address."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from plusx.data.dataset import images_of
from plusx.data.readers.open import open_data
from plusx.data.sets import published
from plusx.data.sets.download import Download, fetch
from plusx.data.sets.published import (
    CIFAR10,
    CIFAR100,
    FASHION_MNIST,
    SVHN,
    SVHN_EXTRA,
    open_cifar,
    open_idx,
    open_svhn,
    published_set,
    read_idx,
)
from plusx.errors import UserError


SVHN_DIGESTS = {
    "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "md5:a93ce644f1a588dc4d68dda5feec44a7",
}


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.setenv("PLUSX_DATA", str(folder))
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


def small_cifar(kind: published.Cifar) -> tuple[published.Cifar, dict[str, bytes]]:
    """The same set with 20 images a file, and its files."""
    small = replace(kind, records=20, test_records=10)
    random = np.random.default_rng(0)
    files = {}
    for name in (*kind.train, *kind.test):
        count = 20 if name in kind.train else 10
        rows = random.integers(0, 256, (count, kind.label_bytes + 3072), dtype=np.uint8)
        rows[:, : kind.label_bytes] = np.arange(count)[:, None] % 10
        files[name] = rows.tobytes()
    if isinstance(kind.classes, str):
        files[kind.classes] = "\n".join(f"class{number}" for number in range(100)).encode()
    return small, files


def tar(files: dict[str, bytes], folder: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def server() -> Iterator[dict[str, bytes]]:
    """A server on this machine; what is put into the dictionary under its path is served."""
    served: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    served["address"] = f"http://127.0.0.1:{httpd.server_port}".encode()
    yield served
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def test_cifar_is_read_from_the_official_binary_files(
    kind: published.Cifar, empty_place: Path
) -> None:
    small, files = small_cifar(kind)
    folder = empty_place / kind.folder
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    count = 20 * len(kind.train)
    train = open_cifar(small, "train", 7)
    assert len(train) == count - 7
    assert len(train.classes) == kind.num_classes
    assert train.labels[:13].tolist() == [number % 10 for number in range(13)]
    raw = np.frombuffer(files[kind.train[0]], np.uint8).reshape(20, -1)[:, kind.label_bytes :]
    assert torch.equal(
        images_of(train)[:13], torch.from_numpy(raw.reshape(20, 3, 32, 32)[:13].copy())
    )
    assert len(open_cifar(small, "validation", 7)) == 7
    assert len(open_cifar(small, "test", None)) == 10
    assert len(open_cifar(small, "all", None)) == count + 10
    path = folder / kind.train[0]
    path.write_bytes(files[kind.train[0]][:-1])
    with pytest.raises(ValueError, match="is corrupt: "):
        open_cifar(small, "train", None)
    wrong = bytearray(files[kind.train[0]])
    wrong[kind.label_bytes - 1] = 200
    path.write_bytes(wrong)
    with pytest.raises(ValueError, match="label 200 of image 0 is outside 0 to"):
        open_cifar(small, "train", None)


def test_a_local_archive_is_verified_and_unpacked_into_the_cache(
    empty_place: Path, tmp_path: Path
) -> None:
    small, files = small_cifar(CIFAR10)
    data = tar(files, CIFAR10.folder)
    (empty_place / CIFAR10.archive.name).write_bytes(data)
    with pytest.raises(ValueError, match="is not the published file"):
        open_cifar(small, "test", None)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    small = replace(small, archive=replace(CIFAR10.archive, digest=digest))
    before = sorted(os.listdir(empty_place))
    assert len(open_cifar(small, "test", None)) == 10
    assert sorted(os.listdir(empty_place)) == before
    assert sorted(os.listdir(tmp_path / "cache/data/cifar-10-batches-bin")) == sorted(files)


def test_a_missing_archive_is_downloaded_and_verified(
    empty_place: Path, tmp_path: Path, server: dict[str, bytes]
) -> None:
    small, files = small_cifar(CIFAR10)
    data = tar(files, CIFAR10.folder)
    address = f"{server['address'].decode()}/set.tar.gz"
    archive = Download(address, f"md5:{hashlib.md5(data).hexdigest()}", len(data))
    small = replace(small, archive=archive)
    target = tmp_path / "cache" / "data" / "set.tar.gz"
    with pytest.raises(OSError, match=f"HTTP 404 .*put it at {target}"):
        open_cifar(small, "train", None)
    server["/set.tar.gz"] = data[:-1] + b"x"
    with pytest.raises(OSError, match=r"is not the published one .*it was discarded"):
        open_cifar(small, "train", None)
    server["/set.tar.gz"] = data + b"more"
    with pytest.raises(OSError, match="more than"):
        open_cifar(small, "train", None)
    assert not target.exists()
    server["/set.tar.gz"] = data
    assert len(open_cifar(small, "train", 0)) == 100
    del server["/set.tar.gz"]
    assert len(open_cifar(small, "train", 0)) == 100


def test_without_a_network_the_error_names_url_and_folder(tmp_path: Path) -> None:
    # nothing listens on port 9 of this machine
    item = Download("http://127.0.0.1:9/set.tar.gz", "md5:0", 100)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/set\.tar\.gz.* put it at"):
        fetch(item, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_of_an_archive_only_the_files_of_the_set_are_written(
    empty_place: Path, tmp_path: Path
) -> None:
    small, files = small_cifar(CIFAR10)
    link = tarfile.TarInfo(f"{CIFAR10.folder}/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    extras = {f"{CIFAR10.folder}/../../away": b"x", "/away": b"x", "other": b"x"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(link)
        for name, data in ({f"{CIFAR10.folder}/{n}": d for n, d in files.items()} | extras).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (empty_place / CIFAR10.archive.name).write_bytes(packed.getvalue())
    digest = f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}"
    small = replace(small, archive=replace(CIFAR10.archive, digest=digest))
    assert len(open_cifar(small, "test", None)) == 10
    written = sorted(path.name for path in (tmp_path / "cache").rglob("*") if not path.is_dir())
    assert written == sorted(files)


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes())


def test_idx_files_are_read_and_damaged_ones_named(empty_place: Path) -> None:
    small = replace(FASHION_MNIST, counts=(40, 10), elsewhere=())
    folder = empty_place / "fashion-mnist"
    folder.mkdir()
    random = np.random.default_rng(0)
    arrays = []
    for count in (40, 10):
        arrays += [random.integers(0, 256, (count, 28, 28), dtype=np.uint8)]
        arrays += [np.arange(count, dtype=np.uint8) % 10]
    for item, array in zip(small.files, arrays):
        (folder / item.name).write_bytes(idx(array))
    train = open_idx(small, "train", None)
    assert len(train) == 36
    assert np.array_equal(images_of(train)[:, 0].numpy(), arrays[0][:36])
    assert open_idx(small, "validation", None).labels.tolist() == [6, 7, 8, 9]
    assert len(open_idx(small, "all", None)) == 50
    path = folder / small.files[0].name
    good = path.read_bytes()
    for data in (good[:-20], good[:200], b"junk", gzip.compress(b"junk"), idx(arrays[0][:39])):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is corrupt"):
            open_idx(small, "train", None)
    labels = folder / small.files[1].name
    path.write_bytes(good)
    labels.write_bytes(idx(np.full(40, 10, np.uint8)))
    with pytest.raises(ValueError, match="label 10 of image 0"):
        open_idx(small, "train", None)
    assert read_idx(path, (40, 28, 28)).shape == (40, 28, 28)


def test_the_classes_of_a_trained_network_must_be_those_of_the_set() -> None:
    assert open_data("digits", classes=tuple("0123456789")).classes[3] == "3"
    with pytest.raises(ValueError, match="digits has the classes 0, 1"):
        open_data("digits", classes=("cat", "dog"))


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, -1])
def test_an_invalid_validation_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"validation = {share}"):
        open_data("digits", validation=share)


# the real ones, where they are


def _needs(path: str) -> None:
    root = os.environ.get("PLUSX_DATA")
    if root is None:
        pytest.skip("PLUSX_DATA is not set")
    if not Path(root, path).exists():
        pytest.skip(f"PLUSX_DATA has no {path}")


@pytest.mark.data
def test_the_real_cifar10_has_its_official_counts_and_mean() -> None:
    _needs("cifar-10-batches-bin")
    sizes = {
        split: len(open_data("cifar10", split=split)) for split in ("train", "validation", "test")
    }
    assert sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}
    whole = open_data("cifar10", validation=0)
    assert whole.labels.bincount().tolist() == [5000] * 10
    moments = []
    for channel in range(3):
        counts = np.bincount(images_of(whole)[:, channel].numpy().ravel(), minlength=256)
        levels, shares = np.arange(256) / 255, counts / counts.sum()
        mean = (levels * shares).sum()
        moments.append((mean, np.sqrt((levels**2 * shares).sum() - mean**2)))
    means, deviations = zip(*moments)
    assert means == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
    assert deviations == pytest.approx([0.24703, 0.24349, 0.26159], abs=1e-5)


@pytest.mark.data
def test_the_real_fashion_mnist_has_its_official_counts() -> None:
    _needs("fashion-mnist")
    sizes = {
        split: len(open_data("fashion-mnist", split=split))
        for split in ("train", "validation", "test")
    }
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    test = open_data("fashion-mnist", split="test")
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes[int(test.labels[0])] == "Ankle boot"


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = open_data("digits", split="all")
    assert ours.labels.tolist() == theirs.target.tolist()
    pixels = torch.from_numpy(theirs.images * (255 / 16)).round().to(torch.uint8)
    assert torch.equal(images_of(ours)[:, 0], pixels)


def small_svhn(kind: published.Svhn) -> published.Svhn:
    """The same set with 60 images a training file and 20 for test, 2 of each class held out."""
    train = tuple(replace(file, count=60, held_out=2) for file in kind.train)
    return replace(kind, train=train, test=replace(kind.test, count=20))


def write_svhn(folder: Path, kind: published.Svhn) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The files of the official site: X (32, 32, 3, n), and y (n, 1) from 1 to 10, compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for number, file in enumerate((*kind.train, kind.test)):
        random = np.random.default_rng(number)
        x = random.integers(0, 256, (32, 32, 3, file.count), dtype=np.uint8)
        y = (random.permutation(file.count) % 10 + 1).astype(np.uint8)[:, None]
        name = file.download.name
        savemat(folder / name, {"X": x, "y": y}, do_compression=True)
        arrays[name] = (x, y)
    return arrays


def test_svhn_is_read_from_the_official_mat_files(empty_place: Path) -> None:
    small = small_svhn(SVHN)
    arrays = write_svhn(empty_place / "svhn", small)
    train, validation, test, whole = (
        open_svhn(small, split, None) for split in ("train", "validation", "test", "all")
    )
    assert [len(train), len(validation), len(test), len(whole)] == [40, 20, 20, 80]
    assert train.classes == tuple("0123456789")
    x, y = arrays["train_32x32.mat"]
    assert torch.equal(images_of(whole)[:60], torch.from_numpy(x.transpose(3, 2, 0, 1).copy()))
    assert whole.labels[:60].tolist() == [0 if label == 10 else int(label) for label in y[:, 0]]
    # the last two of each class validate
    assert validation.labels.bincount().tolist() == [2] * 10
    for label in range(10):
        of_class = images_of(whole)[:60][whole.labels[:60] == label]
        assert torch.equal(images_of(validation)[validation.labels == label], of_class[-2:])
        assert torch.equal(images_of(train)[train.labels == label], of_class[:-2])
    assert torch.equal(images_of(open_svhn(small, "validation", 7)), images_of(whole)[53:60])
    assert len(open_svhn(small, "train", 0)) == 60
    assert published_set(empty_place / "svhn") == "svhn"


def test_the_extra_images_of_svhn_train_too(empty_place: Path) -> None:
    small = small_svhn(SVHN_EXTRA)
    arrays = write_svhn(empty_place / "SVHN", small)
    train = open_svhn(small, "train", None)
    assert len(train) == 80
    assert len(open_svhn(small, "validation", None)) == 40
    # numbers are counted from the end of the harder images
    last = images_of(open_svhn(small, "validation", 7))
    x, _ = arrays["train_32x32.mat"]
    assert torch.equal(last, torch.from_numpy(x[..., -7:].transpose(3, 2, 0, 1).copy()))


def test_the_published_counts_and_digests_of_svhn() -> None:
    # the site's page; digests as torchvision has them
    assert [file.count for file in SVHN_EXTRA.train] == [531_131, 73_257]
    assert (SVHN.train, SVHN.test.count) == (SVHN_EXTRA.train[1:], 26_032)
    for file in (*SVHN_EXTRA.train, SVHN.test):
        assert SVHN_DIGESTS[file.download.name] == file.download.digest
    # Huang 2016, section 4: 400 of each class, and 200 of the extra ones
    assert sum(10 * file.held_out for file in SVHN_EXTRA.train) == 6_000


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((32, 32, 3, 59), (60, 1), r"X is uint8 of \(32, 32, 3, 59\), not uint8 of"),
        ((32, 32, 3, 60), (1, 60), r"y is uint8 of \(1, 60\)"),
        ((32, 32, 3, 60), None, "y is missing"),
        ((32, 32, 3, 60), (60, 1), "label 11 of image 0 is outside 1 to 10"),
    ],
)
def test_other_mat_files_are_refused(
    empty_place: Path, x: tuple[int, ...], y: tuple[int, ...] | None, message: str
) -> None:
    small = small_svhn(SVHN)
    write_svhn(empty_place / "svhn", small)
    path = empty_place / "svhn" / "train_32x32.mat"
    arrays = {"X": np.zeros(x, np.uint8)} | ({} if y is None else {"y": np.full(y, 11, np.uint8)})
    savemat(path, arrays)
    with pytest.raises(UserError, match=f"train_32x32.mat is corrupt: .*{message}"):
        open_svhn(small, "train", None)


def test_a_cut_or_foreign_mat_file_is_refused(empty_place: Path) -> None:
    small = small_svhn(SVHN)
    write_svhn(empty_place / "svhn", small)
    path = empty_place / "svhn" / "test_32x32.mat"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for data in (
        whole[: len(whole) // 2],
        bytes(damaged),
        b"",
        b"\x89HDF\r\n\x1a\n" * 99,
        whole[:130],
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"test_32x32\.mat is corrupt: "):
            open_svhn(small, "test", None)


def test_missing_svhn_is_downloaded(
    empty_place: Path, tmp_path: Path, server: dict[str, bytes]
) -> None:
    small = small_svhn(SVHN)
    write_svhn(tmp_path / "made", small)
    data = (tmp_path / "made" / "test_32x32.mat").read_bytes()
    address = f"{server['address'].decode()}/test_32x32.mat"
    download = Download(address, f"md5:{hashlib.md5(data).hexdigest()}", len(data))
    small = replace(small, test=replace(small.test, download=download))
    target = tmp_path / "cache" / "data" / "svhn" / "test_32x32.mat"
    with pytest.raises(OSError, match=f"HTTP 404 .*put it at {target}"):
        open_svhn(small, "test", None)
    server["/test_32x32.mat"] = data
    assert len(open_svhn(small, "test", None)) == 20
    del server["/test_32x32.mat"]
    assert len(open_svhn(small, "test", None)) == 20
