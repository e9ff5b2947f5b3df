"""What a path is: recognised by its files, with the reason, and chosen by the task of a recipe."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus import boxes, coco, divided, folder, masks, packed, people, table, voc
from plusx.data.readers.layouts import kind_of, kinds_of
from plusx.data.readers.open import open_data
from plusx.errors import UserError
from plusx.recipe import load_recipe, parse_recipe, to_toml


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


def test_a_path_without_data_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "train.json").write_text("[1, 2]")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("notes.csv", "train.json", "empty", "pipe.csv", "missing", "."):
        assert kinds_of(tmp_path / name) == {}, name
        assert kind_of(tmp_path / name) is None
    with pytest.raises(UserError, match=r"pipe.csv is not data that plusx can read"):
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
        UserError, match=r'"voc" \(images in JPEG.* or as "coco" .*: choose one with data.ki'
    ):
        load_recipe("boxes", [f"data.path={path}"]).data.kind  # noqa: B018
    recipe = "people", [f"data.path={folder(tmp_path / 'photos')}"]
    assert load_recipe(*recipe).data.kind == "people"
    text = to_toml(load_recipe(*recipe)).replace('kind = "people"\n', "")
    with pytest.raises(UserError, match=r'can be read as "folder" .* or as "people" '):
        parse_recipe(text)
    assert load_recipe("boxes", [f"data.path={path}", "data.kind=voc"]).data.kind == "voc"


def test_data_of_another_task_is_named(tmp_path: Path) -> None:
    advice = r'can be read as "masks" .*, which is not for classify: `plusx train masks data.path='
    with pytest.raises(UserError, match=advice):
        load_recipe("images", [f"data.path={masks(tmp_path)}"])
    with pytest.raises(
        UserError, match=r'has the kind "masks" .*but images with classes are needed'
    ):
        open_data(tmp_path)
