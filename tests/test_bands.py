"""Images of many channels and of other ranges than 8 bits: read, checked, trained on, used."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from plusx.data.dataset import images_of
from plusx.data.image_file import UnreadableInput, open_image
from plusx.data.loader import Loader
from plusx.data.modality import BandsModality, ImageModality, modality_from_dict
from plusx.data.readers.open import open_data
from plusx.data.readers.tiff import read_bands
from plusx.data.sets.synthetic import CLASS_BAND, open_bands
from plusx.recipe import OwnData, load_recipe
from plusx.run import evaluate, load_run, predict, train
from plusx.run.datasets import own_modality


KNOWN = BandsModality((8, 8), 5, (0.5,) * 5, (0.25,) * 5, 0, 10_000)


def _folder(root: Path, count: int = 6, side: int = 8) -> Path:
    """Two classes of five bands of 16 bits; the third is dark or bright, the others are noise."""
    random = np.random.default_rng(0)
    for number, name in enumerate(("dark", "bright")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = random.integers(0, 10_000, (side, side, 5)).astype(np.uint16)
            image[:, :, 2] = 1000 + 6000 * number + image[:, :, 2] // 20
            path = root / name / f"{i}.tif"
            if i % 2:  # bands side by side in each pixel, or one after the other
                tifffile.imwrite(path, image, planarconfig="contig")
            else:
                planes = np.moveaxis(image, 2, 0)
                tifffile.imwrite(path, planes, planarconfig="separate", photometric="minisblack")
    return root


def _recipe(folder: Path, *overrides: str) -> Any:
    return load_recipe(
        "bands-satellite",
        ["data.kind=folder", f"data.path={folder}", "data.channels=5", "data.range=[0.0,10000.0]",
         "data.size=8", "data.augment=pad1 crop flip", "net.base=resnet20", "epochs=8",
         "batch_size=4", "optim.lr=0.05", "device.threads=1", "evaluate.every=0", *overrides],
    )  # fmt: skip


def test_the_storage_order_of_bands_does_not_matter(tmp_path: Path) -> None:
    image = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6) * 500
    contig, pages = tmp_path / "contig.tif", tmp_path / "pages.tif"
    tifffile.imwrite(contig, np.moveaxis(image, 0, 2), planarconfig="contig")
    tifffile.imwrite(pages, image, photometric="minisblack")
    for path in (contig, pages):
        assert np.array_equal(read_bands(str(path), 5), image)
        assert np.array_equal(read_bands(str(path), 2, (4, 1)), image[[3, 0]])
    grey = tmp_path / "grey.png"
    Image.fromarray(image[0]).save(grey)
    assert np.array_equal(read_bands(str(grey), 1), image[:1])


def test_files_without_those_bands_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.zeros((4, 6, 3), np.uint16), planarconfig="contig")
    with pytest.raises(UnreadableInput, match="3 channels, not 5"):
        read_bands(str(path), 5)
    with pytest.raises(UnreadableInput, match="3 channels, and no band 4"):
        read_bands(str(path), 1, (4,))
    with pytest.raises(UnreadableInput, match="too many"):
        read_bands(str(path), 3, limit=10)
    with pytest.raises(UnreadableInput, match="cannot be decoded"):
        read_bands(path.read_bytes()[:150], 3)
    with pytest.raises(UnreadableInput, match="neither a TIFF nor a PNG"):
        read_bands(b"\xff\xd8\xff\xe0 a photograph", 3)
    monkeypatch.setattr("plusx.data.readers.tiff._MAX_VALUES", 60)
    with pytest.raises(UnreadableInput, match="6 x 4 pixels of 3 channels: too many"):
        read_bands(str(path), 3)


@pytest.mark.slow
def test_files_that_do_not_fit_are_named_before_training(tmp_path: Path) -> None:
    root = _folder(tmp_path / "data", 3)
    bad = np.full((8, 8, 5), 20_000, np.uint16)
    tifffile.imwrite(root / "dark" / "bright.tif", bad, planarconfig="contig")
    holes = np.full((8, 8, 5), np.nan, np.float32)
    tifffile.imwrite(root / "dark" / "holes.tif", holes, planarconfig="contig")
    with pytest.raises(ValueError, match="2 of 8 files cannot be used") as refused:
        open_data(root, split="all", modality=KNOWN)
    text = str(refused.value)
    assert "dark/bright.tif: its values run from 20000 to 20000, outside 0 to 10000" in text
    assert "dark/holes.tif: 320 of its values are not finite" in text
    source = open_data(root, split="all", modality=KNOWN, on_unreadable="skip")
    assert len(source) == 6
    assert any("skipped dark/holes.tif" in warning for warning in source.warnings)
    wide = BandsModality((8, 8), 5, (0.5,) * 5, (0.25,) * 5, 0, 10_000_000)
    with pytest.raises(ValueError, match="almost nothing of the range 0 to 1e"):
        open_data(root, split="all", modality=wide, on_unreadable="skip")
    three = BandsModality((8, 8), 3, (0.5,) * 3, (1.0,) * 3, 0, 10_000)
    with pytest.raises(ValueError, match="5 channels, not 3"):
        open_data(root, split="all", modality=three)


def test_a_tiff_of_bands_needs_data_channels(tmp_path: Path) -> None:
    pixels = np.zeros((8, 9, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableInput, match=r"set \[data\] channels"):
        open_image(tmp_path / "a.tif")


@pytest.mark.slow
def test_warnings_of_a_reader_are_in_the_reason_only(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, np.ones((3, 32, 32), np.uint16), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:1000])
    script = """
import sys
from plusx.data.image_file import UnreadableInput
from plusx.data.readers.tiff import read_bands
try:
    read_bands(sys.argv[1], 3)
except UnreadableInput as error:
    print(error)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert process.stdout
    assert not process.stderr


def test_augmentations_for_8_bit_images_are_refused() -> None:
    assert KNOWN.transform("pad1 crop flip cutout4", train=True, stored=True).batched
    with pytest.raises(
        ValueError, match=r"'flip jitter\.4'.* multi-band images; their words are pad"
    ):
        KNOWN.transform("flip jitter.4", train=True)


def test_a_recipe_has_range_and_bands() -> None:
    declared = OwnData(
        kind="folder", path="x", size=8, channels=13, range=(0.0, 1e4), bands=(4, 3, 2)
    )
    modality = own_modality(declared)
    assert modality is not None
    assert (modality.channels, modality.bands, modality.high) == (3, (4, 3, 2), 10_000)
    assert modality_from_dict(modality.to_dict()) == modality
    assert modality.kind == "bands"
    assert own_modality(OwnData(kind="folder", path="x")) is None
    grey = own_modality(OwnData(kind="folder", path="x", channels=1))
    assert grey is not None
    assert grey.kind == "image"
    with pytest.raises(ValueError, match="4 is not one of 3 channels"):
        own_modality(OwnData(kind="csv", path="x", channels=3, bands=(4,)))
    with pytest.raises(ValueError, match="the first number must be lower"):
        own_modality(OwnData(kind="csv", path="x", range=(1.0, 1.0)))


def test_values_are_scaled_by_their_range() -> None:
    """((v - low) / (high - low) - mean) / std, in whatever type the values are stored."""
    modality = BandsModality((1, 2), 1, (0.5,), (0.25,), -100, 300)
    for kind in (torch.int16, torch.int32, torch.float32):
        normalised = modality.normalise(torch.tensor([[[[-100, 300]]]], dtype=kind))
        assert torch.equal(normalised, torch.tensor([[[[-2.0, 2.0]]]]))


@pytest.mark.slow
def test_a_folder_of_bands_is_trained_on_evaluated_and_predicted(tmp_path: Path) -> None:
    root = _folder(tmp_path / "data", 10)
    result = train(_recipe(root), tmp_path / "run", progress=False)
    assert result["validation"]["accuracy"] >= 0.75  # four images of two plain classes
    run = load_run(tmp_path / "run")
    assert (run.preprocessing.channels, run.preprocessing.high) == (5, 10_000)
    other = _folder(tmp_path / "other", 3, side=16)
    assert evaluate(run, data=other, split="all")["count"] == 6
    (tmp_path / "picture.png").write_bytes((tmp_path / "data/dark/0.tif").read_bytes()[:40])
    predictions = predict(run, [other / "dark" / "0.tif", tmp_path / "picture.png"])
    assert [Path(row["path"]).name for row in predictions["predictions"]] == ["0.tif"]
    assert len(predictions["failed"]) == 1
    flat = np.full((5, 8, 8), 0.4, np.float32)  # reflectances of another product
    tifffile.imwrite(tmp_path / "flat.tif", flat, photometric="minisblack")
    with pytest.warns(UserWarning, match="almost nothing of the range 0 to 10000"):
        predict(run, [tmp_path / "flat.tif"])


@pytest.mark.slow
def test_pixels_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    source = open_data(_folder(tmp_path / "data", 3), split="all", modality=KNOWN)
    source = source.fitted()
    inputs = []
    for workers in (0, 1):
        loader = Loader(source, split="train", augment="pad2 crop flip cutout2", batch_size=4,
                        seed=3, workers=workers)  # fmt: skip
        with loader:
            inputs.append(torch.cat([batch.inputs for batch in loader.epoch(1)]))
    assert torch.equal(*inputs)
    assert inputs[0].shape == (6, 5, 8, 8)


@pytest.mark.slow
def test_measured_bands_have_mean_0_and_deviation_1(tmp_path: Path) -> None:
    source = open_data(_folder(tmp_path / "data", 3), split="all", modality=KNOWN)
    with Loader(source.fitted(), split="all") as loader:
        values = torch.cat([batch.inputs for batch in loader.epoch(0)])
    assert torch.allclose(values.mean((0, 2, 3)), torch.zeros(5), atol=1e-3)
    assert torch.allclose(values.std((0, 2, 3)), torch.ones(5), atol=1e-2)


@pytest.mark.slow
def test_the_class_of_synthetic_bands_depends_on_one_of_them() -> None:
    """The direction of the strongest wave tells the class from band 8 and from no other."""
    source = open_bands("test", None, 0)
    assert torch.equal(images_of(source), images_of(open_bands("test", None, 5)))
    angles = np.deg2rad([0, 30, 60, 90, 120, 150])
    down, along = np.meshgrid(np.fft.fftfreq(32), np.fft.rfftfreq(32), indexing="ij")
    length = np.hypot(down, along)
    waves = (length > 1 / 8.5) & (length < 1 / 3.5)  # of the stripes' lengths
    turn = np.arctan2(down, along) % np.pi
    right = []
    for band in range(13):
        power = np.abs(np.fft.rfft2(images_of(source)[:, band].numpy())) ** 2 * waves
        peak = turn.ravel()[power.reshape(len(source), -1).argmax(1)]
        apart = np.abs((peak[:, None] - angles + np.pi / 2) % np.pi - np.pi / 2)
        right.append(float((apart.argmin(1) == source.labels.numpy()).mean()))
    assert right.pop(CLASS_BAND - 1) > 0.9
    assert max(right) < 0.25  # 600 images of six classes: five deviations above chance


def test_s9_tiffs_with_lzw_are_read(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    image = np.random.default_rng(0).integers(0, 10_000, (8, 6, 5)).astype(np.uint16)
    for compression in ("lzw", "zstd", "deflate"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, image, planarconfig="contig", compression=compression)
        assert (read_bands(path.read_bytes(), 5) == np.moveaxis(image, 2, 0)).all()


def test_s9_without_what_decompresses_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4, 5), np.uint16), planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", fails)
    with pytest.raises(RuntimeError, match=r"plusx\[satellite\]"):
        read_bands(str(path), 5)


def test_s11_a_tagged_value_for_no_data_is_named(tmp_path: Path) -> None:
    image = np.full((8, 8, 5), 7000, np.float32)
    image[2, 2], image[3, 3] = 0, 2000
    path = tmp_path / "a.tif"
    tags = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(path, image, planarconfig="contig", extratags=tags)
    verdict = KNOWN.examine(path.read_bytes())
    assert verdict.problem is None
    assert verdict.warning == "its tag declares 0 as missing data, but it is used as a value"
    image[2, 2] = -9999
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(path, image, planarconfig="contig", extratags=tags)
    problem = KNOWN.examine(str(path)).problem
    assert problem is not None
    assert "run from -9999 to 7000 (-9999 marks missing data), outside 0 to 10000" in problem


def test_s11_a_band_that_is_tagged_as_transparency_is_named(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unassalpha"])
    verdict = ImageModality((8, 8), 3, (0.5,) * 3, (0.2,) * 3).examine(str(path))
    assert verdict.warning is not None
    assert "if it is a band, such as infrared, set [data] channels = 4" in verdict.warning
    assert (read_bands(str(path), 4) == np.moveaxis(image, 2, 0)).all()
