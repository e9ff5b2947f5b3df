"""What decodes JPEGs: chosen and never guessed, under the same rules, and no more than is seen."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import hostile
from plusx.data import image_file as room
from plusx.data.image_file import ImageFile, UnreadableInput, check_decoder
from plusx.data.loader import Loader, batches
from plusx.data.readers.open import open_data


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, of which no decoder drops much."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    return hostile.saved(image, "JPEG", quality=95, **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(4):
            data = jpeg(photo(90 + 200 * (index == 3), 60 + 150 * (index == 3), index))
            (tmp_path / "set" / name / f"{index}.jpg").write_bytes(data)
    return tmp_path / "set"


def levels(first: torch.Tensor, second: torch.Tensor) -> float:
    """The greatest difference of two batches, roughly in levels of 255."""
    return float((first - second).abs().max()) * 0.229 * 255


def test_pillow_is_the_default_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("simplejpeg was not chosen")

    spy = SimpleNamespace(decode_jpeg=refuse, decode_jpeg_header=refuse)
    monkeypatch.setitem(sys.modules, "simplejpeg", spy)
    source = open_data(folder, split="all", size=16)
    assert source.items.decoder == "pillow"
    for augment in ("", "resizedcrop flip"):
        assert len(next(batches(source, split="train", augment=augment))) == 8
    with pytest.raises(ValueError, match="pillow, simplejpeg"):
        check_decoder("opencv")
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"plusx\[fast\]"):
        open_data(folder, decoder="simplejpeg")


def test_simplejpeg_decodes_the_same_windows(folder: Path) -> None:
    pytest.importorskip("simplejpeg")
    sources = [open_data(folder, split="all", size=16, decoder=d) for d in ("pillow", "simplejpeg")]
    first, second = (next(batches(source, split="test")) for source in sources)
    assert torch.equal(first.inputs, second.inputs)
    for augment in ("", "resizedcrop flip", "resizedcrop jitter.4"):
        first, second = (
            next(batches(source, split="train", augment=augment)) for source in sources
        )
        assert torch.equal(first.targets, second.targets)
        # decoders differ by a few levels where they spread the colours, as their authors say
        assert levels(first.inputs, second.inputs) < 24
        assert (first.inputs - second.inputs).abs().mean() * 0.229 * 255 < 1.5
    decoded = [
        next(batches(sources[1], split="train", augment="resizedcrop flip", workers=workers))
        for workers in (0, 1)
    ]
    assert torch.equal(decoded[0].inputs, decoded[1].inputs)


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("kind", ["grey", "cmyk", "turned", "progressive"])
def test_both_decoders_agree_on_every_kind_of_jpeg(kind: str, shrink: int) -> None:
    pytest.importorskip("simplejpeg")
    image = photo(64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = {
        "grey": lambda: jpeg(image.convert("L")),
        "cmyk": lambda: jpeg(image.convert("CMYK")),
        "turned": lambda: jpeg(image, exif=exif),
        "progressive": lambda: jpeg(image, progressive=True),
    }[kind]()
    first, second = (
        np.asarray(ImageFile(data, decoder=decoder).decoded(shrink=shrink)).astype(int)
        for decoder in ("pillow", "simplejpeg")
    )
    assert first.shape == second.shape
    upright = (64, 48) if kind == "turned" else (48, 64)
    assert first.shape[:2] == tuple(side // shrink for side in upright)
    assert np.abs(first - second).max() < 24
    box = (8, 4, 40, 36)
    windows = [ImageFile(data, decoder=d).window(box, shrink) for d in ("pillow", "simplejpeg")]
    assert windows[0].shape == (32 // shrink, 32 // shrink, 3)
    assert windows[1].shape == windows[0].shape
    top, left, side = 4 // shrink, 8 // shrink, 32 // shrink
    for window, whole in zip(windows, (first, second)):
        assert np.array_equal(window, whole[top : top + side, left : left + side])


def test_both_decoders_refuse_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    data = jpeg(photo(64, 48))
    for decoder in ("pillow", "simplejpeg"):
        with pytest.raises(UnreadableInput, match="64 x 48 pixels, at most 1,000"):
            ImageFile(data, 1000, decoder=decoder).decoded()
        with pytest.raises(UnreadableInput):
            ImageFile(data[: len(data) // 2], decoder=decoder).decoded()
        with pytest.raises(UnreadableInput, match="not one of"):
            ImageFile(b"GARBAGE" + data, decoder=decoder).decoded()
        image = ImageFile(hostile.saved(hostile.PICTURE, "PNG"), decoder=decoder)
        assert np.array_equal(np.asarray(image.decoded()), hostile.PICTURE)
    # a header that the two read differently is left to Pillow, whose limits were asked
    other = SimpleNamespace(
        decode_jpeg_header=lambda data: (48, 65), decode_jpeg=lambda *arguments, **more: 1 / 0
    )
    monkeypatch.setitem(sys.modules, "simplejpeg", other)
    assert ImageFile(data, decoder="simplejpeg").decoded().size == (64, 48)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_only_the_used_rows_of_a_large_photo_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    if decoder == "simplejpeg":
        pytest.importorskip("simplejpeg")
    for name in ("cat", "dog"):
        for index in range(4):
            (folder / name / f"{index}.jpg").write_bytes(jpeg(photo(640, 480, index)))
    shrunken: list[int] = []
    original = ImageFile.window

    def watched(self: ImageFile, box: room.Box, shrink: int):
        shrunken.append(shrink)
        decoded = original(self, box, shrink)
        assert decoded.shape[0] <= -(-(box[3] - box[1]) // shrink) + 1
        return decoded

    monkeypatch.setattr(ImageFile, "window", watched)
    source = open_data(folder, split="train", validation=0, size=64, decoder=decoder)
    with Loader(source, augment="resizedcrop", batch_size=8) as loader:
        decoded = [batch.inputs for epoch in range(4) for batch in loader.epoch(epoch)]
    assert {2, 4} <= set(shrunken)
    monkeypatch.setattr("plusx.data.transforms.steps._shrink", lambda box, size: 1)
    with Loader(source, augment="resizedcrop", batch_size=8) as loader:
        whole = [batch.inputs for epoch in range(4) for batch in loader.epoch(epoch)]
    apart = torch.cat(decoded) - torch.cat(whole)
    # a window begins at a whole pixel of the shrunken image, at most one of the network's off
    assert apart.abs().mean() * 0.229 * 255 < 4
    assert not torch.equal(torch.cat(decoded), torch.cat(whole))
