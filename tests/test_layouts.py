"""What a path is: recognised by its files, with the reason, and chosen by the task of a recipe."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plusx.data.readers.layouts import kind_of, kinds_of
from plusx.data.readers.open import open_data
from plusx.data.readers.packing import pack
from plusx.errors import UserError
from plusx.recipe import load_recipe, parse_recipe, to_toml


def photo(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path) -> Path:
    for number in range(8):
        photo(root / ("cat", "dog")[number % 2] / f"{number}.png", number)
    return root


def divided(root: Path) -> Path:
    folder(root / "train")
    folder(root / "val")
    return root


def table(root: Path) -> Path:
    folder(root)
    rows = [f"{('cat', 'dog')[n % 2]}/{n}.png,{n % 2}" for n in range(8)]
    (root / "photos.csv").write_text("\n".join(["path,label", *rows]))
    return root / "photos.csv"


def packed(root: Path) -> Path:
    pack(folder(root / "photos"), root / "photos.plusx", side=32)
    return root / "photos.plusx"


def voc(root: Path) -> Path:
    for number in range(4):
        photo(root / "JPEGImages" / f"{number}.png", number)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{number}.xml").write_text(
            "<annotation><object><name>cell</name><bndbox><xmin>3</xmin><ymin>3</ymin>"
            "<xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )
    return root


def coco(root: Path) -> Path:
    for number in range(4):
        photo(root / "images" / f"{number}.png", number)
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(4)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9]} for n in range(4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    (root / "train.json").write_text(json.dumps(content))
    return root


def boxes(root: Path) -> Path:
    for number in range(4):
        photo(root / f"{number}.png", number)
    rows = [f"{number}.png,2,2,11,11,cell" for number in range(4)]
    (root / "boxes.csv").write_text("\n".join(["path,left,top,right,bottom,label", *rows]))
    return root / "boxes.csv"


def masks(root: Path) -> Path:
    for number in range(4):
        photo(root / "images" / f"{number}.png", number)
        mask = np.zeros((24, 32), np.uint8)
        mask[:, 16:] = 1
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root


def people(root: Path) -> Path:
    for name, split in (("ann", "train"), ("bob", "train"), ("cid", "test"), ("dee", "test")):
        photo(root / split / name / "1.png", 1)
        photo(root / split / name / "2.png", 2)
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "folder": (folder, ["folder", "people"]),
    "divided": (divided, ["folder"]),
    "csv": (table, ["csv"]),
    "packed": (packed, ["packed"]),
    "voc": (voc, ["voc"]),
    "coco": (coco, ["coco"]),
    "boxes": (boxes, ["boxes"]),
    "masks": (masks, ["masks"]),
    "people": (people, ["people"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_path_is_recognised_with_its_reason(name: str, tmp_path: Path) -> None:
    make, kinds = LAYOUTS[name]
    (tmp_path / "set").mkdir()
    path = make(tmp_path / "set")
    assert list(kinds_of(path)) == kinds
    assert all(kinds_of(path).values())


def test_what_is_no_data_is_recognised_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "train.json").write_text("[1, 2]")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("notes.csv", "train.json", "empty", "pipe.csv", "missing", "."):
        assert kinds_of(tmp_path / name) == {}, name
        assert kind_of(tmp_path / name) is None
    with pytest.raises(UserError, match=r"pipe.csv is no data that plusx can read"):
        open_data(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="missing is missing"):
        open_data(tmp_path / "missing")


@pytest.mark.parametrize(
    ("recipe", "name", "kind"),
    [
        ("images", "csv", "csv"),
        ("images", "packed", "packed"),
        ("images", "folder", "folder"),
        ("digits-resnet20", "divided", "folder"),
        ("boxes", "voc", "voc"),
        ("boxes", "coco", "coco"),
        ("boxes", "boxes", "boxes"),
        ("masks", "masks", "masks"),
        ("camvid-detect", "masks", "masks"),
        ("people", "folder", "people"),
        ("people", "people", "people"),
    ],
)
def test_t15_data_kind_follows_the_path(recipe: str, name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = LAYOUTS[name][0](tmp_path / "set")
    read = load_recipe(recipe, [f"data.path={path}"])
    assert read.data.kind == kind
    assert f'kind = "{kind}"' in to_toml(read)
    assert parse_recipe(to_toml(read)) == read


def test_a_recipe_needs_no_kind_of_data(tmp_path: Path) -> None:
    text = to_toml(load_recipe("images", [f"data.path={folder(tmp_path / 'photos')}"]))
    assert parse_recipe(text.replace('kind = "folder"\n', "")) == parse_recipe(text)
    with pytest.raises(UserError, match="sise is not a key"):
        parse_recipe(text.replace('kind = "folder"\n', "sise = 3\n"))


def test_data_that_can_be_read_in_two_ways_is_named_with_both(tmp_path: Path) -> None:
    path = coco(voc(tmp_path))
    with pytest.raises(
        UserError, match=r'"voc" \(images in JPEG.* or as "coco" .*: say which with data.ki'
    ):
        load_recipe("boxes", [f"data.path={path}"]).data.kind  # noqa: B018
    recipe = "people", [f"data.path={folder(tmp_path / 'photos')}"]
    assert load_recipe(*recipe).data.kind == "people"
    text = to_toml(load_recipe(*recipe)).replace('kind = "people"\n', "")
    with pytest.raises(UserError, match=r'can be read as "folder" .* or as "people" '):
        parse_recipe(text)
    assert load_recipe("boxes", [f"data.path={path}", "data.kind=voc"]).data.kind == "voc"


def test_data_of_another_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'can be read as "masks" .*, which is not for classify'):
        load_recipe("images", [f"data.path={masks(tmp_path)}"])
    with pytest.raises(
        UserError, match=r'is of the kind "masks" .*and classified images are needed'
    ):
        open_data(tmp_path)
