"""`plusx info PATH`: what a data set is, what is in it and what is wrong with it."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plusx.cli
from corpus import boxes, coco, divided, faces, folder, masks, packed, people, photo, table, voc
from page_reader import Page
from plusx.data.checks import leaks
from plusx.data.duplicates import copies, decoded_thumbnails
from plusx.data.image_file import thumbnail
from plusx.data.inspection import displayed_image
from plusx.data.readers.open import open_data
from plusx.run.inspecting import inspect


DATA = os.environ.get("PLUSX_DATA")


def info(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert plusx.cli.run(["info", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


LAYOUTS: list[tuple[Callable[[Path], Path], str, dict[str, int], list[str]]] = [
    (folder, "folder", {"train": 6, "validation": 2}, ["cat", "dog"]),
    (divided, "folder", {"train": 8, "validation": 8}, ["cat", "dog"]),
    (table, "csv", {"train": 6, "validation": 2}, ["0", "1"]),
    (packed, "packed", {"train": 6, "validation": 2}, ["cat", "dog"]),
    (voc, "voc", {"train": 3, "validation": 1}, ["cell"]),
    (coco, "coco", {"train": 3, "validation": 1}, ["cell"]),
    (boxes, "boxes", {"train": 3, "validation": 1}, ["cell"]),
    (masks, "masks", {"train": 3, "validation": 1}, ["0", "1"]),
]


@pytest.mark.parametrize(("make", "kind", "splits", "classes"), LAYOUTS)
def test_kind_splits_and_classes_are_named(
    make: Callable[[Path], Path],
    kind: str,
    splits: dict[str, int],
    classes: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make(tmp_path)
    values = info(capsys, str(path))
    assert (values["kind"], values["splits"]) == (kind, splits)
    assert [row["name"] for row in values["classes"]] == classes
    assert values["sizes"]["median"] == [32, 24]
    assert f"data.path={path}" in values["command"]
    assert plusx.cli.run(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"train {splits['train']}, validation {splits['validation']}" in text
    assert values["command"] in text


def test_the_suggested_command_trains(tmp_path: Path) -> None:
    from plusx.recipe import load_recipe

    for make, kind, _, _ in LAYOUTS:
        (tmp_path / make.__name__).mkdir()
        command = inspect(str(make(tmp_path / make.__name__)))["command"].split()
        assert command[:2] == ["plusx", "train"]
        assert load_recipe(command[2], command[3:]).data.kind == kind


def test_a_folder_of_people_and_a_named_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = info(capsys, str(faces(tmp_path)), "--kind", "people")
    assert (values["kind"], [*values["other_kinds"]]) == ("people", ["folder"])
    assert values["splits"] == {"train": 8, "validation": 4}
    assert values["command"] == f"plusx train people data.path={tmp_path}"
    assert info(capsys, "digits")["splits"] == {"train": 1200, "validation": 300, "test": 297}
    assert plusx.cli.run(["info", str(people(tmp_path / "others"))]) in (0, 2)


def test_a_path_without_data_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for name, says in (
        ("notes.txt", "is not data that"),
        ("missing", "no data"),
        (".", "no class"),
    ):
        assert plusx.cli.run(["info", str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err
    assert plusx.cli.run(["info", "--out", "x.html"]) == 2
    assert "name it" in capsys.readouterr().err


def test_the_second_reading_uses_the_cache_until_a_file_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from plusx.run import inspecting

    read: list[str] = []
    original = inspecting.inspect_data
    monkeypatch.setattr(
        inspecting,
        "inspect_data",
        lambda *arguments: read.append(arguments[0]) or original(*arguments),
    )
    for path in (table(tmp_path / "table"), folder(tmp_path / "folder")):
        first = info(capsys, str(path))
        assert info(capsys, str(path)) == first
        assert len(read) == 1
        photo(path.parent / "cat" / "0.png" if path.is_file() else path / "cat" / "0.png", 99)
        info(capsys, str(path))
        assert len(read) == 2
        info(capsys, str(path), "--out", str(tmp_path / "page.html"))
        assert len(read) == 3
        read.clear()


def test_the_page_has_the_counts_the_examples_and_the_warnings(tmp_path: Path) -> None:
    path = boxes(tmp_path)
    photo(tmp_path / "4.png", 0)  # the same as 0.png
    path.write_text(path.read_text() + "\n4.png,2,2,11,11,cell")
    values = inspect(str(path), tmp_path / "pages")
    page = (tmp_path / "pages" / "info.html").read_text(encoding="utf-8")
    assert values["page"] == str(tmp_path / "pages" / "info.html")
    assert page.count("<img ") >= 3
    assert "5 images with 5 boxes of 1 class" in page
    assert "the same file" in page
    assert "Boxes of each class" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert len(Page(page).attributes("src")) == 4


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(40))
    (path / "notes.txt").write_text("x")
    values = inspect(str(path))
    assert any("cat/broken.jpg" in text for text in values["left_out"])
    assert any("notes.txt" in text for text in values["left_out"])
    assert values["command"].endswith("data.on_unreadable=skip")
    assert values["count"] == 8


def test_tiffs_of_many_bands_have_their_own_recipe(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for number in range(10):
        file = tmp_path / ("crop", "water")[number % 2] / f"{number}.tif"
        file.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 9000, (13, 24, 32)).astype(np.uint16)
        tifffile.imwrite(file, values, planarconfig="separate", photometric="minisblack")
    values = inspect(str(tmp_path))
    assert (values["count"], values["modes"]) == (10, {"13 bands": 10})
    assert values["sizes"]["median"] == [32, 24]
    command = f"plusx train bands-satellite data.path={tmp_path} data.channels=13 "
    assert values["command"] == command + "'data.range=[0.0,10000.0]' data.size=32"


# ------------------------------------------------------------------------- checks


def encoded(image: Image.Image, *, quality: int = 75) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scenery(seed: int) -> Image.Image:
    """A picture with large shapes and fine grain, as photographs have them."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((256, 192), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = generator.integers(-12, 13, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def test_copies_across_splits_are_found_after_transformations(tmp_path: Path) -> None:
    for number in range(40):
        split = ("train", "train", "test", "test", "val", "val")[number % 6]
        file = tmp_path / split / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        scenery(number).save(file)
    planted = {
        "again.jpg": encoded(scenery(0), quality=60),
        "small.jpg": encoded(scenery(6).resize((96, 72), Image.Resampling.LANCZOS)),
        "large.jpg": encoded(scenery(12).resize((400, 300), Image.Resampling.BICUBIC)),
        "mirrored.jpg": encoded(scenery(18).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "same.png": (tmp_path / "train" / "cat" / "24.png").read_bytes(),
    }
    for name, data in planted.items():
        (tmp_path / "test" / "cat" / name).write_bytes(data)
    (tmp_path / "test" / "dog" / "other.jpg").write_bytes(encoded(scenery(30)))
    findings = {finding["check"]: finding for finding in inspect(str(tmp_path))["findings"]}
    pairs = {twin: one for one, twin in findings["copy_across_splits"]["files"]}
    assert pairs == {
        "test/cat/again.jpg": "train/cat/0.png",
        "test/cat/small.jpg": "train/cat/6.png",
        "test/cat/large.jpg": "train/cat/12.png",
        "test/cat/mirrored.jpg": "train/cat/18.png",
    }
    same = findings["same_file_across_splits"]
    assert same["files"] == [["train/cat/24.png", "test/cat/same.png"]]
    other = findings["copy_across_splits_other_class"]
    assert other["files"] == [["train/cat/30.png (cat)", "test/dog/other.jpg (dog)"]]
    assert all(finding["serious"] for finding in (same, other, findings["copy_across_splits"]))


@pytest.mark.data
def test_different_images_are_rarely_reported_as_copies() -> None:
    assert DATA is not None
    raw = np.fromfile(Path(DATA) / "cifar-10-batches-bin" / "test_batch.bin", np.uint8)
    pixels = raw.reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    images = [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]
    pairs = copies(decoded_thumbnails([thumbnail(image) for image in images]))
    assert pairs is not None
    # 7 of 50 million pairs, some of which are indeed one image
    assert len(pairs[0]) <= 10 < 1e-4 * len(images) * (len(images) - 1) / 2


@pytest.mark.data
@pytest.mark.slow
def test_copies_among_small_images_that_are_much_alike_are_found(tmp_path: Path) -> None:
    """Of Fashion-MNIST, whose thumbnails of 16 pixels are nearly the same for 21,000 pairs."""
    source = open_data("fashion-mnist", split="train")
    images = [displayed_image(source, index) for index in range(3000)]
    for number, image in enumerate(images[:2000]):
        path = tmp_path / "train" / source.classes[source.label(number)].replace("/", " ")
        path.mkdir(parents=True, exist_ok=True)
        image.save(path / f"{number}.png")
    planted = {}
    for number, image in enumerate(images[2000:] + images[:60]):
        label = source.label(number + 2000 if number < 1000 else number - 1000)
        folder_of_class = tmp_path / "test" / source.classes[label].replace("/", " ")
        folder_of_class.mkdir(parents=True, exist_ok=True)
        if number < 1000:
            image.save(folder_of_class / f"{number}.png")
            continue
        path = folder_of_class / f"copy{number - 1000}.jpg"
        changed = [
            image,
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            image.resize((56, 56), Image.Resampling.BICUBIC),
        ][number % 3]
        path.write_bytes(encoded(changed, quality=90))
        planted[path.name] = number - 1000
    files = [
        pair
        for finding in inspect(str(tmp_path))["findings"]
        if finding["check"] == "copy_across_splits"
        for pair in finding["files"]
    ]
    pairs = {(Path(a).stem, Path(b).name) for a, b in files}
    right = {(str(number), name) for name, number in planted.items()}
    assert len(pairs & right) >= 0.9 * len(planted)
    assert len(pairs - right) <= 3  # of two million


def test_sets_of_similar_images_give_no_list_of_pairs() -> None:
    grey = decoded_thumbnails(["", "", ""])
    pairs = copies(grey)
    assert pairs is not None
    assert len(pairs[0]) == 0  # nothing is seen on them
    one = np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), (1500, 1, 1))
    assert copies(one) is None


def test_files_with_equal_first_and_last_bytes_are_compared_completely(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512, 3), np.uint8)
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            pixels[256, :100] = 10 * (number + 2 * (split == "val"))
            Image.fromarray(pixels).save(tmp_path / split / name / "1.bmp")
    assert not leaks(open_data(tmp_path), {"validation": open_data(tmp_path, split="validation")})


def test_train_warns_of_images_that_are_in_two_splits(tmp_path: Path) -> None:
    from plusx.run.build import Sets

    path = divided(tmp_path)
    sets = Sets(open_data(path), open_data(path, split="validation"))
    (warning,) = sets.warnings
    assert "validation metrics of" in warning
    assert "8 of its images are in the training set too, as the same file" in warning
    assert "train/cat/0.png and val/cat/0.png" in warning


def test_boxes_that_are_there_twice_and_names_that_hardly_differ(tmp_path: Path) -> None:
    path = boxes(tmp_path)
    lines = path.read_text() + "\n0.png,3,3,12,12,hot dog\n1.png,3,3,3.5,12,hot-dog"
    path.write_text(lines + "\n0.png,3,3,12.0,12,hot dog")
    values = inspect(str(path))
    findings = {finding["check"]: finding for finding in values["findings"]}
    assert any("row 8" in text and "row 6" in text for text in values["left_out"])
    assert findings["tiny_boxes"]["files"] == [["1.png: hot-dog [3, 3, 3.5, 12]"]]
    assert findings["similar_classes"]["files"] == [["hot dog", "hot-dog"]]


def test_images_of_one_colour_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    Image.new("RGB", (20, 20), (3, 90, 7)).save(path / "cat" / "plain.png")
    findings = {finding["check"]: finding for finding in inspect(str(path))["findings"]}
    assert findings["one_colour"]["files"] == [["cat/plain.png"]]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "kind", "splits", "classes"),
    [
        ("BCCD", "voc", {"train": 205, "validation": 87, "test": 72}, 3),
        ("camvid", "masks", {"train": 367, "validation": 101, "test": 233}, 12),
        ("isbi2012", "masks", {"train": 19, "validation": 5}, 2),
        ("orl", "folder", {"train": 240, "validation": 60}, 30),
        ("cifar10", "cifar10", {"train": 45000, "validation": 5000, "test": 10000}, 10),
    ],
)
def test_real_data_is_named(
    name: str, kind: str, splits: dict[str, int], classes: int, tmp_path: Path
) -> None:
    values = inspect(name)
    assert (values["kind"], values["splits"]) == (kind, splits)
    assert len(values["classes"]) == classes
