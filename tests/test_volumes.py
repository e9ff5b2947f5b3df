"""Volumes: where their voxels lie, what they are brought to, what is refused, and their patches."""

import json
import logging
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plusx.data.dataset import Dataset
from plusx.data.image_file import UnreadableInput
from plusx.data.loader import Loader
from plusx.data.modality import VolumeModality, modality_from_dict
from plusx.data.modality.space import (
    Space,
    count_at,
    nearest,
    reoriented,
    reoriented_spacing,
    resampled,
    with_stored_axes,
)
from plusx.data.readers.layouts import kinds_of
from plusx.data.readers.scans import Placement, as_nifti, read_scan
from plusx.data.readers.volumes import open_volumes
from plusx.data.sets.ellipsoids import open_ellipsoids
from plusx.data.transforms.words import parse_augment
from volume_files import write_nifti, write_series


ORIENTATIONS = ["SPL", "RAS", "LPS", "IAR", "ARS"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path / "cache"))


def affine_of(orientation: str, spacing: tuple[float, float, float]) -> np.ndarray:
    """Of an array whose axes grow to these places."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, side) in enumerate(zip(orientation, spacing)):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[world, axis] = side if letter in "RAS" else -side
    affine[:3, 3] = (-7, 11, 3)
    return affine


def ct(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Hounsfield units of air, water and bone."""
    random = np.random.default_rng(seed)
    return random.choice([-1000.0, 0.0, 60.0, 700.0], shape).astype(np.float32)


def a_folder(root: Path, count: int = 5, **changes: Any) -> Path:
    """CTs of 12 x 10 x 8 voxels and their masks, a ball each."""
    for number in range(count):
        values = ct((12, 10, 8), number)
        mask = np.zeros(values.shape, np.uint8)
        mask[3:8, 3:7, 2:6] = 1
        values[mask > 0] = 50
        affine = affine_of("RAS", (1.0, 1.0, 2.0))
        write_nifti(root / "images" / f"p{number // 2}_{number}.nii.gz", values, affine)
        write_nifti(root / "labels" / f"p{number // 2}_{number}.nii.gz", mask, affine)
    return root


def opened(root: Path, **changes: Any) -> Dataset:
    options: dict[str, Any] = {
        "classes": ("background", "ball"),
        "range": (-1024.0, 3071.0),
        "window": (-160.0, 240.0),
        "patch": (4, 6, 6),
    }
    return open_volumes(root, **{**options, **changes})


@pytest.mark.slow
@given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS))
def test_an_array_turns_to_every_orientation_and_back(held: str, target: str) -> None:
    affine = affine_of(held, (1.0, 2.0, 3.0))
    values = np.arange(24).reshape(2, 3, 4)
    turned = reoriented(values, affine, target)
    assert (with_stored_axes(turned, affine, target) == values).all()
    assert (reoriented(values[None], affine, target)[0] == turned).all()
    # a step along an axis of ours is a step of the world to where its letter says
    index = np.argwhere(turned == values[1, 1, 1])[0]
    for axis, letter in enumerate(target):
        step = index.copy()
        step[axis] += 1 if index[axis] + 1 < turned.shape[axis] else -1
        stored = np.argwhere(values == turned[tuple(step)])[0]
        moved = affine[:3, :3] @ (stored - 1) * (step[axis] - index[axis])
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        assert moved[world] * (1 if letter in "RAS" else -1) > 0
        assert reoriented_spacing(affine, target)[axis] == pytest.approx(np.abs(moved).max())


@pytest.mark.slow
@given(st.integers(1, 9), st.sampled_from([0.5, 1.0, 1.7, 3.0]), st.sampled_from([0.5, 1.0, 2.0]))
def test_constant_volumes_stay_constant_at_every_spacing(
    count: int, old: float, new: float
) -> None:
    values = np.full((1, count, 2, 3), 5.0, np.float32)
    volume = resampled(values, (old, 1.0, 1.0), (new, 1.0, 1.0))
    assert volume.shape == (1, count_at(count, old, new), 2, 3)
    np.testing.assert_allclose(volume, 5, rtol=1e-6)
    kinds = nearest(np.full((count, 2, 3), 2, np.uint8), (old, 1.0, 1.0), (new, 1.0, 1.0))
    assert kinds.shape == volume.shape[1:]
    assert (kinds == 2).all()


def test_half_the_spacing_is_linear_and_twice_the_spacing_a_mean() -> None:
    ramp = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    one, two, four = (1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.5, 1.0, 1.0)
    finer = resampled(ramp, one, four)[0, :, 0, 0]
    np.testing.assert_allclose(finer[1:-1], np.arange(14) * 0.5 + 0.25)
    noise = np.array([0, 4] * 8, np.float32).reshape(1, 16, 1, 1)
    np.testing.assert_allclose(resampled(noise, one, two)[0, 1:-1, 0, 0], 2, atol=1e-6)
    assert nearest(np.array([3, 7], np.uint8).reshape(2, 1, 1), two, one).ravel().tolist() == [
        3, 3, 7, 7,
    ]  # fmt: skip


@pytest.mark.slow
def test_dicom_and_nifti_of_one_scan_are_the_same_volume(tmp_path: Path) -> None:
    slices = ct((6, 5, 4))
    folder = write_series(tmp_path / "scan", slices, spacing=(2.5, 0.8, 0.7), origin=(10, 20, 30))
    series = read_scan(folder)
    # the first voxel, and the last one, where DICOM says: LPS, so x and y are the other way
    assert series.affine @ [0, 0, 0, 1] == pytest.approx([-10, -20, 30, 1])
    assert series.affine @ [3, 4, 5, 1] == pytest.approx([-12.1, -23.2, 42.5, 1])
    assert reoriented_spacing(series.affine, "SPL") == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_array_equal(reoriented(series.values, series.affine, "SPL")[0], slices)
    file = write_nifti(tmp_path / "scan.nii.gz", slices.transpose(2, 1, 0), series.affine)
    abrightness = read_scan(file)
    np.testing.assert_allclose(abrightness.affine, series.affine, atol=1e-5)
    np.testing.assert_array_equal(abrightness.values, series.values)


@pytest.mark.slow
def test_a_mask_is_written_with_the_affine_of_its_volume(tmp_path: Path) -> None:
    import nibabel

    affine = affine_of("IAR", (2.0, 1.0, 0.5))
    scan = read_scan(write_nifti(tmp_path / "a.nii", ct((3, 4, 5)), affine, (2, 0)))
    mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3
    content = as_nifti(mask, scan.placement)
    assert content == as_nifti(mask, scan.placement)
    (tmp_path / "mask.nii.gz").write_bytes(content)
    loaded = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(loaded.affine, affine)
    assert (int(loaded.header["sform_code"]), int(loaded.header["qform_code"])) == (2, 0)
    assert loaded.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), mask)


def test_units_of_a_file_are_respected(tmp_path: Path) -> None:
    import nibabel

    affine = np.diag([0.001, 0.002, 0.001, 1])
    image = nibabel.Nifti1Image(ct((3, 4, 5)), affine)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    assert reoriented_spacing(scan.affine, "RAS") == pytest.approx((1, 2, 1))
    assert isinstance(scan.placement, Placement)
    np.testing.assert_allclose(scan.placement.sform, affine)


@pytest.mark.slow
def test_unusable_scans_are_named_with_the_reason(tmp_path: Path) -> None:
    good = ct((4, 4, 4))
    broken = good.copy()
    broken[1, 2, 3] = np.nan
    flat = np.eye(4)
    flat[0, 0] = 0
    cases = {
        "voxels are not finite": write_nifti(tmp_path / "nan.nii.gz", broken),
        "no affine": write_nifti(tmp_path / "lost.nii.gz", good, codes=(0, 0)),
        "three dimensions": write_nifti(tmp_path / "flat.nii.gz", good[0]),
        "cut short|corrupt|cannot be read": tmp_path / "short.nii.gz",
        "NIfTI": tmp_path / "text.nii",
    }
    whole = write_nifti(tmp_path / "whole.nii.gz", ct((16, 16, 16))).read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("no volume")
    # told by the header: what it says of its size is not read
    cases["not one number per voxel"] = pairs = tmp_path / "pairs.nii"
    write_nifti(pairs, np.zeros((4, 4, 4), np.complex128))
    pairs.write_bytes(pairs.read_bytes()[:400])
    for message, path in cases.items():
        with pytest.raises(UnreadableInput, match=message):
            read_scan(path)
    with pytest.raises(FileNotFoundError):
        read_scan(tmp_path / "none.nii")


@pytest.mark.slow
def test_unusable_series_are_named_with_the_reason(tmp_path: Path) -> None:
    slices = ct((5, 4, 3))
    missing = write_series(tmp_path / "missing", slices)
    sorted(missing.iterdir())[2].unlink()
    two = write_series(tmp_path / "two", slices)
    for path in write_series(tmp_path / "other", slices, series="9.9").iterdir():
        path.rename(two / f"other-{path.name}")
    twice = write_series(tmp_path / "twice", slices)
    first = next(iter(sorted(twice.iterdir())))
    (twice / "abrightness.dcm").write_bytes(first.read_bytes())
    for folder, message in ((missing, "missing"), (two, "2 series"), (twice, "same position")):
        with pytest.raises(UnreadableInput, match=message):
            read_scan(folder)


def _without_rows(dataset: Any) -> None:
    del dataset.Rows


def _lying_nowhere(dataset: Any) -> None:
    dataset.ImagePositionPatient = [0, 0]


def _turned_by_five_numbers(dataset: Any) -> None:
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1]


def _of_another_size(dataset: Any) -> None:
    dataset.Rows, dataset.PixelData = 2**15, b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [_without_rows, _lying_nowhere, _turned_by_five_numbers, _of_another_size]
)
@pytest.mark.parametrize("number", [0, 2])
def test_corrupt_headers_of_slices_are_named(change: Any, number: int, tmp_path: Path) -> None:
    import pydicom

    folder = write_series(tmp_path / "series", ct((5, 4, 3)))
    path = sorted(folder.iterdir())[number]
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    with pytest.raises(UnreadableInput):
        read_scan(folder)


@pytest.mark.slow
def test_windows_clip_and_scale_hounsfield_units(tmp_path: Path) -> None:
    source = opened(a_folder(tmp_path / "set"), split="all")
    values = np.concatenate([volume.image.ravel() for volume in source.items.volumes])
    assert (values.min(), values.max()) == (-160, 240)
    with Loader(source, split="validation") as loader:
        batches = list(loader.epoch(0))
    # 0 Hounsfield units are 0.4 of the window from -160 to 240
    levels = torch.cat([batch.inputs.flatten() for batch in batches]).unique()
    np.testing.assert_allclose(levels, (np.array([0, 0.4, 0.525, 0.55, 1]) - 0.5) / 0.25, atol=1e-6)
    assert [tuple(batch.inputs.shape) for batch in batches] == [(1, 1, 8, 10, 12)] * 5
    assert batches[0].targets.sum() == 5 * 4 * 4


@pytest.mark.slow
def test_wrong_ranges_are_errors_and_not_identical_outputs(tmp_path: Path) -> None:
    """A CT that was scaled to 0 .. 1 or 0 .. 255 looks like nothing in a window of Hounsfield."""
    for name, change in {
        "unit": lambda v: (v + 1024) / 4095,
        "bytes": lambda v: (v + 1024) / 4095 * 255,
        "shifted": lambda v: v + 10_000,
    }.items():
        root = a_folder(tmp_path / name)
        path = root / "images" / "p0_1.nii.gz"
        write_nifti(path, change(ct((12, 10, 8))), affine_of("RAS", (1.0, 1.0, 2.0)))
        with pytest.raises(ValueError, match=r"images/p0_1\.nii\.gz: its values, .* range"):
            opened(root, split="all")
        left = opened(root, split="all", on_unreadable="skip")
        assert len(left) == 4
        assert any("p0_1" in warning for warning in left.warnings)
    with pytest.raises(ValueError, match="almost none of the window"):
        opened(a_folder(tmp_path / "far"), split="all", window=(2000.0, 3000.0))
    with pytest.raises(ValueError, match=r"window .* within the range"):
        opened(tmp_path / "far", split="all", window=(-2000.0, 240.0))


@pytest.mark.slow
def test_percentiles_bring_volumes_without_a_unit_to_one_scale(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set", count=2)
    affine = affine_of("RAS", (1.0, 1.0, 2.0))
    random = np.random.default_rng(0).random((12, 10, 8), np.float32)
    for number, highest in enumerate((1500, 400)):
        write_nifti(root / "images" / f"p0_{number}.nii.gz", highest * random, affine)
    source = opened(root, split="all", range=(0.0, 2000.0), window="percentiles")
    one, other = (volume.image for volume in source.items.volumes)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one.min(), one.max()) == (0, 1)


@pytest.mark.slow
def test_two_volumes_of_one_name_are_refused(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set")
    write_nifti(root / "images" / "p0_0.nii", ct((12, 10, 8)))
    with pytest.raises(ValueError, match=r"p0_0\.nii.* and p0_0\.nii.* have the same name"):
        opened(root)


@pytest.mark.slow
def test_masks_that_are_not_of_their_volumes_are_named(tmp_path: Path) -> None:
    affine = affine_of("RAS", (1.0, 1.0, 2.0))
    moved = affine.copy()
    moved[0, 3] += 40
    mask = np.zeros((12, 10, 8), np.uint8)
    wrong = mask.copy()
    wrong[2, 2, :3] = 7
    cases = {
        "size": (mask[:-1], affine, "11 x 10 x 8 voxels and the volume 12 x 10 x 8"),
        "place": (mask, moved, "has another position: up to 40 mm"),
        "value": (wrong, affine, "the value 7 in 3 voxels; the classes are 0 to 1"),
        "parts": (mask + np.float32(0.5), affine, "the value 0.5"),
    }
    for name, (values, where, message) in cases.items():
        root = a_folder(tmp_path / name)
        write_nifti(root / "labels" / "p0_0.nii.gz", values, where)
        with pytest.raises(ValueError, match=rf"images/p0_0\.nii\.gz: its mask .*{message}"):
            opened(root, split="all")
    root = tmp_path / "value"
    source = opened(root, split="all", ignore=(7,))
    assert source.items.volumes[0].mask is not None
    assert (source.items.volumes[0].mask == 255).sum() == 3
    for missing in ("images/p0_0.nii.gz", "labels/p1_3.nii.gz"):
        (root / missing).unlink()
    with pytest.raises(
        ValueError, match=r"mask without a volume.*no mask in|no mask in.*mask without"
    ):
        opened(root, split="all", ignore=(7,))


@pytest.mark.slow
def test_different_spacings_are_an_error(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set")
    space = opened(root, split="all").modality.space
    assert space is not None
    assert space.spacing == (2.0, 1.0, 1.0)
    finer = affine_of("RAS", (0.5, 0.5, 2.0))
    for folder, values in (("images", ct((24, 20, 8))), ("labels", np.ones((24, 20, 8), np.uint8))):
        write_nifti(root / folder / "p2_4.nii.gz", values, finer)
    with pytest.raises(
        ValueError, match=r"p2_4.*its voxels have 2 x 0.5 x 0.5 mm.*set .data. spacing"
    ):
        opened(root, split="all")
    source = opened(root, split="all", spacing=(1.0, 2.0, 2.0))
    assert {volume.image.shape for volume in source.items.volumes} == {(1, 16, 5, 6)}


@pytest.mark.slow
def test_patients_are_in_one_split(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set", count=10)
    for seed in range(4):
        splits = [
            opened(root, split=split, seed=seed, patient="^(p[0-9])_", validation=0.4).items
            for split in ("train", "validation")
        ]
        train, held = ({v.patient for v in part.volumes} for part in splits)
        assert not train & held
        assert (len(train), len(held)) == (3, 2)
    (tmp_path / "divided" / "train").mkdir(parents=True)
    for part, names in {"train": ("images", "labels"), "test": ("images", "labels")}.items():
        for name in names:
            source = root / name
            target = tmp_path / "divided" / part / name
            target.mkdir(parents=True)
            source_name = "p0_0.nii.gz" if part == "test" else "p0_1.nii.gz"
            (source / source_name).rename(target / source_name)
    with pytest.raises(ValueError, match="the same patient, 'p0', in two splits"):
        opened(tmp_path / "divided", patient="^(p[0-9])_")
    with pytest.raises(ValueError, match="finds no patient in the name"):
        opened(root, patient="^case(.)")


@pytest.mark.slow
def test_decoded_volumes_are_cached_until_files_change(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set")
    first = opened(root, split="all")
    cached = sorted((tmp_path / "cache" / "volumes").iterdir())
    assert len(cached) == 10
    abrightness = opened(root, split="all")
    assert sorted((tmp_path / "cache" / "volumes").iterdir()) == cached
    assert abrightness.fingerprint() == first.fingerprint()
    cached[0].write_bytes(b"ruined")
    assert opened(root, split="all").fingerprint() == first.fingerprint()
    path = root / "images" / "p0_0.nii.gz"
    write_nifti(path, ct((12, 10, 8), 99), affine_of("RAS", (1.0, 1.0, 2.0)))
    other = opened(root, split="all")
    assert other.fingerprint() != first.fingerprint()
    assert (other.items.volumes[0].image != first.items.volumes[0].image).any()
    assert sorted(entry.name for entry in root.iterdir()) == ["images", "labels"]


def epoch(source: Dataset, number: int, workers: int = 0, start: int = 0) -> list[torch.Tensor]:
    with Loader(
        source,
        split="train",
        augment="flip vflip dflip rot90 brightness.2 noise.1",
        batch_size=4,
        seed=3,
        workers=workers,
    ) as loader:
        assert loader.count == 3 * len(source)
        return [
            torch.cat([batch.inputs, batch.targets[:, None].float()], 1)
            for batch in loader.epoch(number, start)
        ]


@pytest.mark.slow
def test_patches_are_a_function_of_seed_epoch_and_index() -> None:
    source = open_ellipsoids("validation", None, 0, (8, 12, 12), 3, 0.5)
    one, other = epoch(source, 1), epoch(source, 2)
    assert all(part.shape == (4, 2, 8, 12, 12) for part in one)
    for abrightness in (epoch(source, 1), epoch(source, 1, workers=2)):
        assert all(torch.equal(a, b) for a, b in zip(one, abrightness, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one[4:], epoch(source, 1, start=4), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_patches_contain_foreground_at_the_given_rate() -> None:
    few = open_ellipsoids("validation", 2, 0, (4, 8, 8), 60, 1.0)
    with Loader(few, split="train", batch_size=120) as loader:
        (batch,) = loader.epoch(0)
    assert bool((batch.targets == 1).flatten(1).any(1).all())
    assert len({tuple(patch.flatten().tolist()) for patch in batch.targets}) > 100


@pytest.mark.slow
def test_volumes_smaller_than_a_patch_are_filled_up(tmp_path: Path) -> None:
    source = opened(a_folder(tmp_path / "set"), patch=(12, 8, 20), patches=2)
    with Loader(source, batch_size=2, seed=1) as loader:
        batch = next(iter(loader.epoch(0)))
    assert batch.inputs.shape == (2, 1, 12, 8, 20)
    outside = batch.targets == 255
    assert outside.sum() == 2 * (12 * 20 - 8 * 12) * 8
    assert (batch.inputs[:, 0][outside] == (0 - 0.5) / 0.25).all()


def test_words_for_volumes_that_are_wrong_are_named() -> None:
    assert [
        word.kind for word in parse_augment("flip noise.1", VolumeModality.words, "volumes")
    ] == ["flip", "noise"]
    for text, message in (
        ("flipp", "did you mean 'flip'"),
        ("noise", "noise.1"),
        ("pad4", "not available for volumes"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_augment(text, VolumeModality.words, "volumes")


@pytest.mark.slow
def test_no_threshold_finds_the_ellipsoids() -> None:
    volumes = open_ellipsoids("validation", None, 0, (8, 8, 8), 1, 0.0).items.volumes
    masks = [volume.mask for volume in volumes if volume.mask is not None]
    values = np.concatenate([volume.image.ravel() for volume in volumes])
    inside = np.concatenate([mask.ravel() for mask in masks]) > 0
    best = max(
        2 * (inside & (values > level)).sum() / (inside.sum() + (values > level).sum())
        for level in np.linspace(0, 1, 101)
    )
    assert 0.2 < best <= 0.6


def test_the_spacing_of_a_network_is_stored_with_it() -> None:
    space = Space((8, 16, 16), (2.0, 1.0, 1.0), "SPL", (-1024.0, 3071.0))
    modality = VolumeModality((16, 16), 1, (0.5,), (0.25,), -160.0, 240.0, space=space)
    assert modality_from_dict(modality.to_dict()) == modality
    for wrong in ({"orientation": "SPA"}, {"spacing": [0, 1, 1]}, {"range": [5, 5]}, {"unit": 1}):
        values = modality.to_dict()
        values["space"] = {**values["space"], **wrong}
        with pytest.raises(ValueError, match=r"orientation|spacing|range|unit"):
            modality_from_dict(values)


def _load(path: Path) -> Any:
    import nibabel

    return nibabel.load(path)


@pytest.mark.slow
def test_s5_nearly_integer_masks_are_rounded(tmp_path: Path) -> None:
    root = a_folder(tmp_path, 2)
    usual = opened(root, split="all")
    for path in (root / "labels").iterdir():
        values = np.asarray(_load(path).dataobj, np.float64) * 0.9999999
        write_nifti(path, values.astype(np.float32), _load(path).affine)
    assert (opened(root, split="all").position_counts() == usual.position_counts()).all()
    write_nifti(path, (values * 0.99).astype(np.float32), _load(path).affine)
    with pytest.raises(ValueError, match=r"the value 0\.99 in 80 voxels"):
        opened(root, split="all")


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["LPS", "RAS", "SPL", "AIL"])
def test_s6_a_mask_may_be_stored_along_other_axes_than_its_volume(
    stored: str, tmp_path: Path
) -> None:
    """As many programs write masks: they are turned by their own affine."""
    import nibabel
    import nibabel.orientations as axes

    root = a_folder(tmp_path, 2)
    usual = opened(root, split="all")
    for path in (root / "labels").iterdir():
        image = _load(path)
        transform = axes.ornt_transform(
            axes.io_orientation(image.affine), axes.axcodes2ornt(stored)
        )
        nibabel.save(image.as_reoriented(transform), path)
    other = opened(root, split="all")
    for one, another in zip(usual.items.volumes, other.items.volumes, strict=True):
        assert one.mask is not None
        assert another.mask is not None
        assert (one.mask == another.mask).all()


def _changed_slice(folder: Path, change: Callable[[Any], None], **options: Any) -> Path:
    """A series of which one slice is another."""
    import pydicom

    write_series(folder, ct((5, 4, 3)))
    path = sorted(folder.iterdir())[2]
    header = pydicom.dcmread(path)
    change(header)
    header.save_as(path, **options)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda header: delattr(header, "RescaleIntercept"), "RescaleIntercept"),
        (lambda header: delattr(header, "RescaleSlope"), "RescaleSlope"),
        (lambda header: setattr(header, "RescaleType", "US"), "RescaleType"),
        (lambda header: setattr(header, "Modality", "MR"), "Modality"),
        (
            lambda header: setattr(header, "PhotometricInterpretation", "MONOCHROME1"),
            "PhotometricInterpretation",
        ),
        (lambda header: setattr(header, "BitsStored", 12), "BitsStored"),
    ],
)
def test_s7_a_series_that_differs_within_itself_is_refused(
    change: Callable[[Any], None], key: str, tmp_path: Path
) -> None:
    path = _changed_slice(tmp_path / "series", change)
    with pytest.raises(UnreadableInput, match=rf"{path.name} differs .* in {key}"):
        read_scan(tmp_path / "series")


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, "1e999"])
def test_slices_without_a_scale_are_refused(slope: float | str, tmp_path: Path) -> None:
    path = _changed_slice(
        tmp_path / "series", lambda header: setattr(header, "RescaleSlope", slope)
    )
    with pytest.raises(UnreadableInput, match=rf"{path.name} has RescaleSlope"):
        read_scan(tmp_path / "series")


def test_a_mask_is_written_for_a_volume_with_a_damaged_qform(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "scan.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, 256, math.nan)  # of its quaternion; the sform places it
    path.write_bytes(data)
    scan = read_scan(path)
    (tmp_path / "mask.nii.gz").write_bytes(as_nifti(np.ones((2, 3, 4), np.uint8), scan.placement))
    mask = read_scan(tmp_path / "mask.nii.gz")
    assert (mask.affine == scan.affine).all()
    assert (mask.values == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, [1, 2]])
def test_damaged_headers_of_colours_are_named(value: Any, tmp_path: Path) -> None:
    path = _changed_slice(
        tmp_path / "series", lambda header: setattr(header, "SamplesPerPixel", value)
    )
    with pytest.raises(UnreadableInput, match=rf"{path.name} has a header that cannot be used"):
        read_scan(tmp_path / "series")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (112, math.inf, "scl_slope inf"),
        (80, math.nan, r"its voxels \(pixdim\) have nan"),
        (88, math.inf, r"its voxels \(pixdim\) have 1.0 x 1.0 x inf mm"),
    ],
)
def test_numbers_of_a_nifti_header_that_are_not_finite_are_refused(
    offset: int, value: float, reason: str, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "scan.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    assert read_scan(path).values.shape == (1, 2, 3, 4)
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, offset, value)
    path.write_bytes(data)
    with pytest.raises(UnreadableInput, match=reason):
        read_scan(path)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".dcm", ""])
def test_s7_slices_without_a_preamble_are_read(ending: str, tmp_path: Path) -> None:
    usual = read_scan(write_series(tmp_path / "usual", ct((5, 4, 3))))
    series = write_series(tmp_path / "series", ct((5, 4, 3)))
    for number, path in enumerate(sorted(series.iterdir())):
        data = path.read_bytes()
        assert data[128:132] == b"DICM"
        if number:
            path.write_bytes(data[data.index(b"\x08\0\x16\0UI") :])  # behind the file's own group
        path.rename(path.with_suffix(ending))
    assert (read_scan(series).values == usual.values).all()
    (series / "notes.dcm").write_bytes(b"no slice")
    with pytest.raises(UnreadableInput, match=r"notes\.dcm"):
        read_scan(series)


@pytest.mark.slow
def test_s11_monochrome1_is_turned_where_values_have_no_unit(tmp_path: Path) -> None:
    import pydicom

    values = ct((3, 4, 3)) + 1024
    for modality in ("CT", "CR"):
        folder = write_series(tmp_path / modality, values, shift=0.0)
        for path in folder.iterdir():
            header = pydicom.dcmread(path)
            header.PhotometricInterpretation, header.Modality = "MONOCHROME1", modality
            header.BitsStored, header.HighBit = 12, 11
            header.save_as(path)
    stored, turned = (read_scan(tmp_path / name).values for name in ("CT", "CR"))
    assert (values == stored[0].T).all()
    assert (turned == 4095 - stored).all()


def nnunet(root: Path, channels: int = 2) -> Path:
    """imagesTr/NAME_0000.nii.gz and labelsTr/NAME.nii.gz, the same for the test, dataset.json."""
    a_folder(root, 4)
    for part, numbers in (("Tr", (0, 1, 2)), ("Ts", (3,))):
        for number in numbers:
            name = f"p{number // 2}_{number}.nii.gz"
            image, mask = (_load(root / kind / name) for kind in ("images", "labels"))
            stem = f"case{number}_{number:03}"
            values = np.asarray(image.dataobj)
            for channel in range(channels):
                path = root / f"images{part}" / f"{stem}_{channel:04}.nii.gz"
                write_nifti(path, values + np.float32(channel), image.affine)
            labels = np.asarray(mask.dataobj)
            write_nifti(root / f"labels{part}" / f"{stem}.nii.gz", labels, image.affine)
            (root / f"images{part}" / f"._{stem}_0000.nii.gz").write_bytes(b"AppleDouble")
    for folder in ("images", "labels"):
        shutil.rmtree(root / folder)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_s11_folders_of_nnunet_and_of_the_decathlon_are_read(channels: int, tmp_path: Path) -> None:
    root = nnunet(tmp_path, channels)
    assert list(kinds_of(root)) == ["volumes"]
    train = opened(root, classes=(), validation=0, channels=channels)
    assert train.classes == ("background", "ball")
    assert [volume.name for volume in train.items.volumes] == [
        f"case{number}_{number:03}_0000" for number in range(3)
    ]
    assert train.items.volumes[0].image.shape[0] == channels
    assert len(opened(root, split="test", channels=channels)) == 1
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "none", "1": "liver"}}))
    assert opened(root, classes=(), channels=channels).classes == ("none", "liver")
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "none", "2": "liver"}}))
    with pytest.raises(ValueError, match="no labels numbered from 0"):
        opened(root, classes=(), channels=channels)
    shutil.rmtree(root / "labelsTs")
    (root / "imagesTr" / "case1_001_0000.nii.gz").unlink()
    if channels == 2:
        with pytest.raises(ValueError, match="it has 1 channels, not 2"):
            opened(root, channels=channels)


@pytest.mark.slow
def test_s11_warnings_of_nibabel_name_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_nifti(tmp_path / "odd.nii", ct((4, 3, 2)))
    data = bytearray(path.read_bytes())
    data[80:84] = np.float32(-1).tobytes()  # pixdim[1], which is above 0
    path.write_bytes(data)
    with caplog.at_level("WARNING", "nibabel.global"):
        logging.getLogger("nibabel.global").addHandler(caplog.handler)
        read_scan(path)
    assert all(record.getMessage().startswith("odd.nii: ") for record in caplog.records)
    assert caplog.records


@pytest.mark.slow
def test_x9_volumes_and_masks_that_are_links_out_of_the_set_are_refused(tmp_path: Path) -> None:
    for name in ("images/p0_0.nii.gz", "labels/p0_1.nii.gz", "images/p9/IM1.dcm"):
        root = a_folder(tmp_path / name.replace("/", "-"), 3)
        values = ct((8, 10, 12))
        write_series(root / "images" / "p9", values)
        mask = np.zeros((12, 10, 8), np.uint8)
        write_nifti(root / "labels" / "p9.nii.gz", mask, read_scan(root / "images" / "p9").affine)
        path = root / name
        if path.suffix == ".dcm":
            sorted(path.parent.iterdir())[0].rename(path)
        path.rename(tmp_path / f"elsewhere-{path.name}")
        path.symlink_to(tmp_path / f"elsewhere-{path.name}")
        with pytest.raises(ValueError, match="a link that leaves the folder"):
            opened(root, split="all", spacing=(2.0, 1.0, 1.0))


@pytest.mark.parametrize("position", [0.5, 0.9, 1.0])
def test_a_compressed_volume_whose_checksum_is_wrong_is_refused(
    position: float, tmp_path: Path
) -> None:
    path = write_nifti(tmp_path / "scan.nii.gz", ct((12, 10, 8)))
    content = bytearray(path.read_bytes())
    at = min(int(position * len(content)), len(content) - 6)
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableInput, match="corrupt"):
        read_scan(path)
