"""Packed sets: the folder's pixels, whole or refused, and never those of a folder that changed."""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from plusx import cli
from plusx.data.batch import Batch
from plusx.data.loader import Loader, batches
from plusx.data.readers import packing
from plusx.data.readers.layouts import kind_of
from plusx.data.readers.open import open_data, splits_of
from plusx.data.readers.packed import PackedListing, read_packed
from plusx.data.readers.packed_file import MAGIC
from plusx.data.readers.packing import pack
from plusx.data.rng import SampleRNG
from plusx.data.sample import Sample, pillow_image
from plusx.data.transforms.steps import STEPS, Setting
from plusx.data.transforms.words import parse_augment


SIZES = ((40, 30), (24, 44), (31, 31), (19, 90), (9, 12), (150, 6))


def fill(root: Path, split: str = "", per_class: int = 6) -> None:
    """Noisy JPEGs of several shapes in two class folders, one of them turned by its EXIF tag."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / split / name).mkdir(parents=True)
        for index in range(per_class):
            width, height = SIZES[index % len(SIZES)]
            coarse = random.integers(0, 256, (6, 5, 3)).astype(np.uint8)
            image = Image.fromarray(coarse).resize((width, height))
            exif = Image.Exif()
            if index == 1:
                exif[0x0112] = 6
            data = hostile.saved(image, "JPEG", quality=90, exif=exif)
            (root / split / name / f"{index}.jpg").write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, and what it was packed to, which no test changes."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUSX_CACHE", str(folder / "cache"))
        fill(folder / "set")
        (folder / "set" / "dog" / "grey.png").write_bytes(
            hostile.saved(hostile.PICTURE[:, :, 0].copy(), "PNG")
        )
        pack(folder / "set", folder / "set.plusx", size=16, threads=1)
        yield folder


@pytest.fixture
def folder(whole: Path) -> Path:
    return whole / "set"


@pytest.fixture
def packed(whole: Path, tmp_path: Path) -> Path:
    """A copy of the file; its folder is where it was."""
    return Path(shutil.copy(whole / "set.plusx", tmp_path))


@pytest.fixture
def packed_folder(whole: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of the test's own, and its file."""
    folder, file = tmp_path / "own", tmp_path / "own.plusx"
    shutil.copytree(whole / "set", folder)
    pack(folder, file, size=16, threads=1)
    return folder, file


def pixels(loaded: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in loaded])


@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_evaluation_reads_the_pixels_of_the_folder(folder: Path, packed: Path, split: str) -> None:
    ours, theirs = (open_data(source, split=split, size=16) for source in (packed, folder))
    assert ours.paths == theirs.paths
    assert ours.classes == theirs.classes
    assert torch.equal(ours.labels, theirs.labels)
    assert [ours.describe(0), ours.name] == [theirs.describe(0), "set.plusx"]
    for workers in (0, 1):
        loaded = pixels(list(batches(ours, split="test", batch_size=4, workers=workers)))
        assert torch.equal(loaded, pixels(list(batches(theirs, split="test", batch_size=4))))


def test_a_file_holds_the_splits_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val", "test"):
        fill(tmp_path / "set", split, 3)
    file = tmp_path / "set.plusx"
    summary = pack(tmp_path / "set", file, side=12)
    assert (summary["images"], summary["classes"], summary["side"]) == (18, 2, 12)
    assert summary["bytes"] == file.stat().st_size
    assert splits_of(file) == splits_of(tmp_path / "set") == ("test", "train", "validation")
    for split in ("train", "validation", "test"):
        source = open_data(file, split=split, size=8)
        assert source.paths == open_data(tmp_path / "set", split=split).paths
        assert all(f"/{split[:3]}" in path for path in source.paths or [])
    assert kind_of(file) == "packed"


def test_windows_are_the_same_however_they_are_cut(packed: Path) -> None:
    source = open_data(packed, split="train", validation=0, size=8)

    def made(
        workers: int = 0, part: tuple[int, int] = (0, 1), start: int = 0, **options: Any
    ) -> Any:
        with Loader(
            source, augment="resizedcrop flip vflip", batch_size=5, seed=3, workers=workers,
            part=part, **options,
        ) as loader:  # fmt: skip
            return pixels(list(loader.epoch(1, start)))

    whole = made()
    assert torch.equal(made(2), whole)
    assert torch.equal(made(2, channels_last=True), whole)
    assert torch.equal(made(1, start=1), whole[5:])
    assert torch.equal(made(channels_last=True), whole)
    assert made(channels_last=True).is_contiguous(memory_format=torch.channels_last)
    halves = [made(part=(rank, 2)) for rank in (0, 1)]
    assert torch.equal(halves[0][:3], whole[:3])
    assert torch.equal(halves[1][:2], whole[3:5])


def test_loader_threads_use_no_threads_of_torch(
    packed: Path,
) -> None:
    source = open_data(packed, split="train", validation=0, size=8)
    threads = []

    def ask() -> None:
        threads.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Loader(source, augment="resizedcrop", batch_size=4, workers=2) as loader:
            assert len(list(loader.epoch(0))) > 1
            assert loader._maker is not None
            pool = loader._maker._pool
            assert pool is not None
            assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
        other = threading.Thread(target=ask)
        other.start()
        other.join()
        assert [torch.get_num_threads(), *threads] == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_windows_are_those_of_the_augmentation(packed: Path) -> None:
    """What is cut in one go is what the words make of the stored pixels, one by one."""
    source = open_data(packed, split="train", validation=0, size=8)
    words = parse_augment("resizedcrop flip vflip")
    loader = Loader(source, augment="resizedcrop flip vflip", batch_size=4, drop_last=False)
    for batch in loader.epoch(2):
        for window, label in zip(batch.inputs, batch.targets):
            assert window.shape == (3, 8, 8)
            assert int(label) in (0, 1)
    for index in range(len(source)):
        stored = source.items.file.pixels(int(source.items.numbers[index]))
        image, draws = pillow_image(stored, 3), SampleRNG.of(0, 2, index)
        for number, word in enumerate(words):
            sample = STEPS[word.kind](Sample(image), word, draws.at(number), Setting((8, 8)))
            image = sample.pillow
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        (augmented,) = loader._maker.batch(np.array([index]), 2)
        assert torch.equal(augmented, expected)


def test_other_augmentations_run_in_processes(packed: Path) -> None:
    source = open_data(packed, split="train", validation=0, size=8)
    loaded = [
        pixels(list(batches(source, augment="resizedcrop jitter.4 flip", workers=workers)))
        for workers in (0, 1)
    ]
    assert torch.equal(*loaded)
    grey = source.with_modality(type(source.modality)((8, 8), 1, (0.5,), (0.25,)))
    assert next(batches(grey, augment="resizedcrop flip")).inputs.shape[1] == 1
    assert source.read(0).tensor.shape[0] == 3
    assert grey.read(0).tensor.shape[0] == 1


@pytest.mark.parametrize("offset", [3, len(MAGIC) + 7, -200, -60, -20, -3])
def test_a_flipped_bit_anywhere_is_refused_with_the_files_name(packed: Path, offset: int) -> None:
    data = bytearray(packed.read_bytes())
    data[offset] ^= 4
    packed.write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.plusx"):
        open_data(packed)


def test_a_truncated_file_is_refused(packed: Path) -> None:
    data = packed.read_bytes()
    for length in (len(MAGIC), len(MAGIC) + 50, len(data) - 1):
        packed.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"set\.plusx is corrupt: its index .* pack it again"):
            open_data(packed)


def test_the_digest_of_a_file_is_cached_until_it_changes(
    packed_folder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plusx.data.readers import packed_file as room

    _, packed = packed_folder

    def refuse(*arguments: object) -> str:
        raise AssertionError("summed again")

    with monkeypatch.context() as patch:
        patch.setattr(room, "_pixel_digest", refuse)
        open_data(packed)  # packing has kept the sum
        os.utime(packed, ns=(1, 1))
        with pytest.raises(AssertionError, match="summed again"):
            open_data(packed)
    open_data(packed)


def written(file: Path, index: Any, contents: bytes) -> None:
    text = json.dumps(index).encode()
    end = hashlib.sha256(text).digest() + len(text).to_bytes(8, "little")
    file.write_bytes(MAGIC + contents + text + end + MAGIC)


def rewritten(file: Path, change: Callable[[Any], object]) -> None:
    """Change what a packed file says of its images, and the sums with it."""
    data = file.read_bytes()
    length = int.from_bytes(data[-len(MAGIC) - 8 : -len(MAGIC)], "little")
    end = len(data) - len(MAGIC) - 40 - length
    result = json.loads(data[end : end + length])
    change(result)
    written(file, result, data[len(MAGIC) : end])


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["images"]["path"].__setitem__(0, "../outside.jpg"),
        lambda index: index["images"]["path"].__setitem__(0, "/etc/passwd"),
        lambda index: index["images"]["path"].__setitem__(0, "a\0b"),
        lambda index: index["left_out"].append("../outside.jpg"),
        lambda index: index["folders"].append("cat/../.."),
        lambda index: index["folders"].append(3),
        lambda index: index.__setitem__("source", "\ud800"),
        lambda index: index["images"]["label"].__setitem__(0, 7),
        lambda index: index["images"]["label"].__setitem__(0, -1),
        lambda index: index["images"]["height"].__setitem__(0, -3),
        lambda index: index["images"]["width"].__setitem__(0, 10**9),
        lambda index: index["images"]["width"].__setitem__(0, "wide"),
        lambda index: index["images"]["split"].__setitem__(0, "else"),
        lambda index: index["images"].pop("label"),
        lambda index: index["images"]["label"].pop(),
        lambda index: index.pop("classes"),
        lambda index: index.pop("pixels"),
        lambda index: index.__setitem__("pixels", 3),
        lambda index: index.__setitem__("images", 3),
    ],
)
def test_every_field_of_an_index_is_validated(
    packed: Path, change: Callable[[Any], object]
) -> None:
    rewritten(packed, change)
    with pytest.raises(ValueError, match=r"set\.plusx is not a valid packed file"):
        open_data(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "dog" / "2.jpg").unlink(), r"dog/2\.jpg is missing"),
        (
            lambda root: shutil.copy(root / "cat" / "2.jpg", root / "cat" / "20.jpg"),
            r"cat/20\.jpg is new",
        ),
        (
            lambda root: shutil.copy(root / "cat" / "2.jpg", root / "dog" / "3.jpg"),
            r"dog/3\.jpg has changed",
        ),
        (lambda root: shutil.rmtree(root / "dog"), r"dog/0\.jpg is missing"),
        (lambda root: shutil.copytree(root / "dog", root / "emu"), r"emu is new"),
        (lambda root: shutil.copytree(root / "dog", root / "cat" / "more"), r"cat/more is new"),
    ],
)
def test_a_changed_folder_is_reported_and_its_packed_file_not_used(
    packed_folder: tuple[Path, Path], change: Callable[[Path], object], message: str
) -> None:
    folder, packed = packed_folder
    open_data(packed)
    change(folder)
    with pytest.raises(ValueError, match=rf"packed from .*own, where {message}: pack it again"):
        open_data(packed)


def test_a_folder_that_was_only_touched_or_is_gone_does_not_matter(
    packed_folder: tuple[Path, Path],
) -> None:
    folder, packed = packed_folder
    before = open_data(packed).fingerprint()
    os.utime(folder / "dog" / "2.jpg", ns=(1, 1))
    assert open_data(packed).fingerprint() == before
    shutil.rmtree(folder)
    assert open_data(packed).fingerprint() == before
    moved = packed.rename(packed.with_name("moved"))
    assert open_data(moved).fingerprint() == before


def test_only_listed_folders_are_scanned(
    packed_folder: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, packed = packed_folder
    home = folder.parent
    (folder / "cat" / "private" / "deep").mkdir(parents=True)
    listed: list[str] = []
    original = os.scandir

    def noted(path: str) -> Any:
        listed.append(os.path.relpath(path, home))
        return original(path)

    def strange(source: Path, prefix: str = "") -> Callable[[Any], object]:
        def change(said: Any) -> None:
            said["source"] = str(source)
            said["images"]["path"] = [prefix + name for name in said["images"]["path"]]

        return change

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", noted)
        with pytest.raises(ValueError, match=r"where cat/private is new"):
            open_data(packed)
        assert set(listed) == {"own", "own/cat", "own/dog"}
        listed.clear()
        (folder / "dog" / "2.jpg").unlink()
        with pytest.raises(ValueError, match=r"where dog/2\.jpg is missing"):
            open_data(packed)
        rewritten(packed, strange(home))
        open_data(packed)  # another folder of ours than the one that was packed
        assert listed == []
        rewritten(packed, strange(home, "own/"))
        with pytest.raises(ValueError, match=r"where own/dog/2\.jpg is missing"):
            open_data(packed)
        assert listed == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_packing_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    file = tmp_path / "new.plusx"
    original, calls = packing._pack_one, []

    def made(path: str, side: int) -> Any:
        calls.append(path)
        if len(calls) == 4:
            raise error
        return original(path, side)

    monkeypatch.setattr(packing, "_pack_one", made)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        pack(folder, file, size=16, threads=1)
    assert len(calls) >= 4
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_packed_is_named(
    packed_folder: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, _ = packed_folder
    for to, said in (
        (folder / "in.plusx", "is inside the folder that is packed"),
        (folder, "is a folder"),
        (tmp_path / "nowhere" / "x.plusx", "is in a folder that does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            pack(folder, to)
    with pytest.raises(ValueError, match="from 1 to 4096"):
        pack(folder, tmp_path / "x.plusx", side=0)
    (folder / "dog" / "0.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(ValueError, match=r"dog/0\.jpg"):
        pack(folder, tmp_path / "x.plusx")
    said = pack(folder, tmp_path / "x.plusx", side=9, on_unreadable="skip")
    assert said["images"] == 12
    assert any("dog/0.jpg" in notice for notice in said["warnings"])
    source = open_data(tmp_path / "x.plusx", split="all")
    assert len(source) == 12
    assert any("dog/0.jpg" in notice for notice in source.warnings)
    assert any(
        "9 pixels per side, the network's input has 224" in notice for notice in source.warnings
    )
    with pytest.raises(ValueError, match="is already decoded"):
        open_data(tmp_path / "x.plusx", decoder="simplejpeg")


def test_the_command_prints_time_and_size(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.plusx"
    assert cli.run(["pack", str(folder), "--out", str(file), "--size", "16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["side"], result["bytes"]) == (13, 18, file.stat().st_size)
    assert cli.run(["pack", str(folder), "--out", str(file), "--side", "20"]) == 0
    assert "13 images of 2 classes, 20 pixels on the shorter side" in capsys.readouterr().out
    assert cli.run(["pack", str(tmp_path / "none"), "--out", str(file)]) == 2
    assert "is missing" in capsys.readouterr().err
    assert isinstance(read_packed(file), PackedListing)


@pytest.mark.slow
def test_a_packed_set_trains_and_is_evaluated_like_its_folder(
    folder: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["net.base=resnet20", "data.size=16", "epochs=1", "batch_size=4", "data.workers=1"]
    out = tmp_path / "run"
    recipe = ["data.kind=packed", f"data.path={packed}", "data.augment=resizedcrop flip"]
    assert cli.run(["train", "images", *recipe, *small, "--out", str(out)]) == 0
    capsys.readouterr()
    results = []
    for data in (packed, folder):
        assert cli.run(
            ["evaluate", str(out), "--data", str(data), "--split", "all", "--json"]
        ) == 0  # fmt: skip
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["count"] == results[1]["count"] == 13
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["confusion"] == results[1]["confusion"]
    wrong = ["data.kind=folder", f"data.path={packed}"]
    assert cli.run(["train", "images", *wrong, *small, "--out", str(tmp_path / "no")]) == 2
    assert 'is of the kind "packed"' in capsys.readouterr().err


def test_a_full_disk_is_reported_and_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.plusx").write_bytes(b"as it was")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full: [\d,]+ free.*x\.plusx"):
        pack(folder, tmp_path / "x.plusx", size=16, threads=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"as it was"]
