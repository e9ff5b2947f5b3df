"""Sets in tar files: the same as a folder, and nothing that a hostile archive says is done."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from plusx.data.loader import Loader, batches
from plusx.data.readers.layouts import kind_of
from plusx.data.readers.open import open_data, splits_of
from plusx.data.readers.tar import expanded, read_tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))


def picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (3, 4, 3)).astype(np.uint8).repeat(8, 0).repeat(6, 1)
    return hostile.saved(pixels, "PNG")


def member(name: str, data: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return path


def pairs(start: int, count: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """As WebDataset writes them: an image and its class, one after the other."""
    samples = []
    for number in range(start, start + count):
        samples += [
            member(f"{number:06}.png", picture(number)),
            member(f"{number:06}.cls", str(number % 2).encode()),
        ]
    return samples


def test_tar_files_of_a_folder_have_its_samples(tmp_path: Path) -> None:
    for name, start in (("cat", 0), ("dog", 5)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(start, start + 5):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(picture(number))
    files = sorted((tmp_path / "set").rglob("*.png"))
    for number, some in enumerate((files[:7], files[7:])):
        inside = [(str(path.relative_to(tmp_path / "set")), path.read_bytes()) for path in some]
        tar(tmp_path / f"part-{number}.tar", *(member(*path) for path in inside))
    ours = open_data(f"{tmp_path}/part-{{0..1}}.tar", split="all", size=8)
    theirs = open_data(tmp_path / "set", split="all", size=8)
    assert ours.classes == theirs.classes
    assert torch.equal(ours.labels, theirs.labels)
    assert ours.describe(9) == "part-1.tar/dog/9.png"
    assert torch.equal(ours.read(3).tensor, theirs.read(3).tensor)
    for augment in ("", "resizedcrop flip"):
        inputs = [
            torch.cat([batch.inputs for batch in loaded])
            for loaded in (
                batches(theirs, split="train", augment=augment, batch_size=4),
                batches(ours, split="train", augment=augment, batch_size=4),
                batches(ours, split="train", augment=augment, batch_size=4, workers=1),
            )
        ]
        assert torch.equal(inputs[1], inputs[0])
        assert torch.equal(inputs[2], inputs[0])


def test_file_names_define_splits_and_ranks_share_every_batch(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"x-train-{number:03}.tar", *pairs(8 * number, 8))
    tar(tmp_path / "x-val-000.tar", *pairs(40, 6))
    pattern = f"{tmp_path}/x-*.tar"
    assert kind_of(pattern) == "shards"
    assert splits_of(pattern) == ("train", "validation")
    source = open_data(pattern, size=8)
    assert (len(source), source.classes) == (24, ("0", "1"))
    assert len(open_data(pattern, split="validation")) == 6

    def labels(rank: int, world: int) -> list[torch.Tensor]:
        loader = Loader(source, batch_size=6, seed=5, part=(rank, world))
        return [batch.inputs for batch in loader.epoch(1)]

    for whole, *shares in zip(labels(0, 1), labels(0, 2), labels(1, 2)):
        assert torch.equal(torch.cat(shares), whole)


def test_patterns_are_ranges_or_globs(tmp_path: Path) -> None:
    for name in ("a-008", "a-009", "a-010", "b-008"):
        tar(tmp_path / f"{name}.tar", *pairs(0, 2))
    assert len(expanded(f"{tmp_path}/a-{{008..010}}.tar")) == 3
    assert len(expanded(f"{tmp_path}/{{a,b}}-008.tar")) == 2
    assert len(expanded(f"{tmp_path}/[ab]-*.tar")) == 4
    for pattern, message in (
        ("a-{008..011}.tar", r"a-011\.tar is missing"),
        ("c-*.tar", "is missing"),
        ("a-{9..8}.tar", "from a lower to a higher number"),
        ("a-{0..99999999}.tar", "from a lower to a higher number"),
        ("{0..999}{0..999}.tar", "more than 100,000 files"),
    ):
        with pytest.raises(ValueError, match=message):
            expanded(f"{tmp_path}/{pattern}")
    with pytest.raises(ValueError, match="is missing"):
        open_data(f"{tmp_path}/c-*.tar")


def test_an_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tar(tmp_path / "x.tar", *pairs(0, 6))
    before = read_tar(file)
    with monkeypatch.context() as patch:
        patch.setattr(
            "plusx.data.readers.tar.examine", lambda *arguments: pytest.fail("decoded again")
        )
        reopened = read_tar(file)
    assert reopened.entries == before.entries
    assert reopened.digest == before.digest
    tar(tmp_path / "x.tar", *pairs(1, 6))
    assert read_tar(file).digest != before.digest


@pytest.mark.parametrize(
    ("hostile_one", "message"),
    [
        (member("cat/l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
        (member("cat/l.png", type=tarfile.LNKTYPE, linkname="cat/0.png"), "not a regular file"),
        (member("cat/l.png", type=tarfile.CHRTYPE), "not a regular file"),
        (member("cat/l.png", type=tarfile.FIFOTYPE), "not a regular file"),
        (member("/cat/0.png", b"x"), "a path outside"),
        (member("cat/../../0.png", b"x"), "a path outside"),
        (member("cat/1.png", picture(1)), "is in it twice"),
        (member("0.png", picture(1)), "has no class"),
        (member("cat/x.cls", b"c" * 2000), "too long for a class"),
    ],
)
def test_a_hostile_member_is_refused_with_its_archive(
    tmp_path: Path, hostile_one: tuple[tarfile.TarInfo, bytes], message: str
) -> None:
    file = tar(tmp_path / "x.tar", member("cat/1.png", picture(1)), hostile_one)
    with pytest.raises(ValueError, match=rf"x\.tar: .*{message}"):
        open_data(file)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:700],
        lambda data: b"\x1f\x8b" + data[2:],
        lambda data: data[:124] + b"77777777777\0" + data[136:],
        lambda data: b"",
        lambda data: data[:100] + b"\xff" * 8 + data[108:],
    ],
)
def test_a_corrupt_archive_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    file = tar(tmp_path / "x.tar", *pairs(0, 3))
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.tar"):
        open_data(file)


def test_a_huge_member_name_is_not_read(tmp_path: Path) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**40
    file = tmp_path / "x.tar"
    file.write_bytes(long.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(
        ValueError, match=r"x\.tar is not a readable tar file .*a header of 1,099,5"
    ):
        open_data(file)


def long_names(count: int) -> bytes:
    """Headers of long names, each of which is of the next one."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
    return (long.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * count


def backwards() -> bytes:
    """A member behind which the same one comes again."""
    back = tarfile.TarInfo("notes.txt")
    back.size = -512
    return tarfile.TarInfo("first.txt").tobuf() + back.tobuf(tarfile.GNU_FORMAT)


def sparse() -> bytes:
    """A map of holes that ends in its middle."""
    info = tarfile.TarInfo("a.png")
    info.size = 512
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return info.tobuf(tarfile.PAX_FORMAT) + b"99\n" + bytes(509)


@pytest.mark.parametrize("content", [long_names(3000), backwards(), sparse()])
def test_an_archive_that_is_slow_to_parse_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.tar"
    file.write_bytes(content + bytes(2048))
    with pytest.raises(ValueError, match=r"x\.tar"):
        open_data(file)


def test_damaged_images_are_an_error_or_left_out(tmp_path: Path) -> None:
    bomb = hostile.png(60_000, 60_000, 8, 2, b"\0" * 30)
    file = tar(tmp_path / "x.tar", *pairs(0, 8), member("bad.png", bomb), member("bad.cls", b"1"))
    with pytest.raises(ValueError, match=r"x\.tar/bad\.png: .*at most 200,000,000"):
        open_data(file)
    source = open_data(file, split="all", on_unreadable="skip", size=8)
    assert len(source) == 8
    assert any("bad.png" in warning for warning in source.warnings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its open files
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w-000000.tar")) as sink:
        for number in range(8):
            image = Image.open(io.BytesIO(picture(number)), formats=("PNG",))
            sink.write(
                {"__key__": f"{number:04}", "png": image, "cls": number % 2, "json": {"a": 1}}
            )
    source = open_data(f"{tmp_path}/w-*.tar", split="all", size=8)
    assert source.labels.tolist() == [0, 1] * 4
    theirs = [
        (np.array(image), label)
        for image, label in webdataset.WebDataset(
            str(tmp_path / "w-000000.tar"), shardshuffle=False
        )
        .decode("rgb8")
        .to_tuple("png", "cls")
    ]
    assert [label for _, label in theirs] == source.labels.tolist()
    for number, (image, _) in enumerate(theirs):
        assert np.array_equal(image, source.read(number).tensor.permute(1, 2, 0).numpy())
