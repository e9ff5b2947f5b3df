"""The one walk of all data: copies and views differ, files are opened once, kinds can be added."""

import builtins
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plusx
from plusx.data.dataset import Dataset, Items, MemoryItems
from plusx.data.loader import Loader
from plusx.data.modality import ImageModality, Modality
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.open import open_data
from plusx.data.rng import CounterRNG
from plusx.data.sample import Sample
from plusx.data.sets.ellipsoids import open_ellipsoids


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path_factory.mktemp("cache")))


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def folder_of(root: Path, count: int = 6) -> Path:
    for number in range(2 * count):
        save_image(root / ("cat", "dog")[number % 2] / f"{number}.png", number)
    return root


def unequal() -> Dataset:
    """Two samples of one class and ten of another."""
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    return Dataset(
        name="unequal",
        split="train",
        classes=("rare", "common"),
        labels=torch.tensor([0] * 2 + [1] * 10),
        modality=ImageModality((16, 16), 3, (0.5,) * 3, (0.5,) * 3, resize="stretch"),
        items=MemoryItems(images),
    )


@pytest.mark.parametrize("augment", ["pad10 crop erase1", "rotate30"])
@pytest.mark.parametrize("sampler", ["balanced", "pk"])
def test_copies_of_a_sample_in_an_epoch_differ(sampler: str, augment: str) -> None:
    with Loader(
        unequal(), augment=augment, batch_size=6, sampler=sampler, samples_per_class=3
    ) as loader:
        inputs = torch.cat([batch.inputs for batch in loader.epoch(0)])
    assert len({image.numpy().tobytes() for image in inputs}) == len(inputs)


def test_two_views_of_a_sample_differ_and_the_first_is_the_only_view_without_them() -> None:
    samples = np.arange(50)
    first, second = (CounterRNG.of(3, 1, samples, view).bits() for view in (0, 1))
    assert (first != second).all()
    assert (first == CounterRNG.of(3, 1, samples).bits()).all()


def test_ranks_share_the_patches_of_volumes() -> None:
    volumes = open_ellipsoids("validation", 2, 0, (4, 8, 8), 4, 0.5)
    train = replace(volumes, split="train")
    whole = list(Loader(train, batch_size=4).epoch(0))
    shares = [list(Loader(train, batch_size=4, part=(rank, 4)).epoch(0)) for rank in range(4)]
    for number, batch in enumerate(whole):
        together = torch.cat([share[number].inputs for share in shares])
        assert torch.equal(together, batch.inputs)
    lengths = [len(Loader(volumes, split="validation", part=(rank, 2))) for rank in (0, 1)]
    assert lengths == [1, 1]
    (batch,) = Loader(volumes, split="validation", part=(1, 2)).epoch(0)
    assert len(batch) == 1


def test_boxes_of_pascal_voc_count_from_1(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        save_image(tmp_path / "JPEGImages" / f"{name}.png", size=(30, 40))
        note = tmp_path / "Annotations" / f"{name}.xml"
        note.parent.mkdir(exist_ok=True)
        note.write_text(
            "<annotation><size><width>40</width><height>30</height></size><object>"
            "<name>cat</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>40</xmax><ymax>4</ymax>"
            "</bndbox></object></annotation>"
        )
    dataset = open_annotated(tmp_path, "voc", split="all")
    assert dataset.annotations is not None
    assert dataset.annotations.boxes is not None
    assert dataset.annotations.boxes[0].tolist() == [[0, 2, 40, 4, 0, 0]]


@pytest.mark.parametrize("kind", ["csv", "boxes"])
def test_classes_that_differ_in_case_are_refused_everywhere(tmp_path: Path, kind: str) -> None:
    rows = []
    for number, label in enumerate(("cat", "Cat", "dog", "dog")):
        save_image(tmp_path / f"{number}.png", number)
        rows.append(f"{number}.png,{label}" if kind == "csv" else f"{number}.png,1,1,5,5,{label}")
    header = "path,label" if kind == "csv" else "path,left,top,right,bottom,label"
    path = tmp_path / "set.csv"
    path.write_text("\n".join([header, *rows]))
    with pytest.raises(ValueError, match="'Cat' and 'cat' differ in case only"):
        open_data(path) if kind == "csv" else open_annotated(path, "boxes")


def test_a_second_start_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "photos")
    first = open_data(root).fingerprint()
    opened: list[str] = []
    original, original_os = builtins.open, os.open

    def watched(path: object, *args: object, **more: object) -> object:
        opened.append(str(path))
        return original(path, *args, **more)  # type: ignore[call-overload]

    def watched_os(path: object, *args: object, **more: object) -> int:
        opened.append(str(path))
        return original_os(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(os, "open", watched_os)
    assert open_data(root).fingerprint() == first
    assert not [path for path in opened if path.endswith(".png")]


def test_a_folder_that_is_named_like_a_set_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert "not as the folder ./digits" in open_data("digits").warnings[0]
    assert open_data("./digits").classes == ("cat", "dog")


def test_the_loader_is_public_and_takes_names() -> None:
    with plusx.Loader("digits", split="validation", batch_size=100) as loader:
        assert [len(batch) for batch in loader.epoch(0)] == [100, 100, 100]


@dataclass(frozen=True, eq=False)
class Rendered(Items):
    """Images that are made when they are read: a reader from outside."""

    numbers: list[int]
    paths: list[str] | None = None
    patches: int = 1

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int, modality: Modality) -> Sample:
        height, width = modality.size
        return Sample(torch.full((3, height + 4, width), self.numbers[index], dtype=torch.uint8))

    def subset(self, indices: Sequence[int]) -> "Rendered":
        return replace(self, numbers=[self.numbers[index] for index in indices])

    def digest(self, root: str | None) -> bytes:
        return bytes(self.numbers)


def test_a_reader_can_be_added_from_outside() -> None:
    dataset = Dataset(
        name="rendered",
        split="train",
        classes=("dark", "bright"),
        labels=torch.arange(6) % 2,
        modality=ImageModality((8, 8), 3, (0.5,) * 3, (0.5,) * 3, resize="center_crop"),
        items=Rendered([10, 200] * 3),
    )
    with Loader(dataset, augment="resizedcrop flip", batch_size=3) as loader:
        for batch in loader.epoch(0):
            assert batch.inputs.shape == (3, 3, 8, 8)
            assert ((batch.inputs.mean((1, 2, 3)) > 0).long() == batch.targets).all()
    half = dataset.subset([0, 1, 2])
    assert half.fingerprint() != dataset.fingerprint()
