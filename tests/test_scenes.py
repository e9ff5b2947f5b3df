"""Images with boxes or masks: what is read, what is named before training, what a batch holds."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from plusx.data.annotations import Boxes, Masks
from plusx.data.dataset import Dataset, images_of
from plusx.data.loader import Loader
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.annotation_index import BoxAnnotation, LayoutOptions, checked_box
from plusx.data.readers.coco import RunLengths, polygon_mask, read_coco, segmentation_mask
from plusx.data.readers.packing import pack
from plusx.data.sets import cells
from plusx.data.sets.cells import open_cells
from plusx.recipe import parse_recipe
from plusx.run.build import open_sets, open_split


slow = pytest.mark.slow
Box = tuple[Any, Any, Any, Any, str]  # left, top, right, bottom and class


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUSX_CACHE", str(tmp_path_factory.mktemp("cache")))


GOOD: dict[str, list[Box]] = {
    "a": [(2, 3, 12, 10, "cat"), (20, 5, 39, 29, "dog")],
    "b": [(1, 1, 40, 30, "dog")],
    "c": [],
    "d": [(5, 5, 9, 9, "cat")],
    "e": [(0, 0, 10, 10, "cat")],
}
SPLITS = {"train": "abc", "val": "d", "test": "e"}


def write_image(path: Path, size: tuple[int, int] = (30, 40), seed: int = 0) -> None:
    """A noisy picture of that (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def voc(root: Path, boxes: dict[str, list[Box]] = GOOD) -> Path:
    """A folder as Pascal VOC has it; every picture has 40 x 30 pixels."""
    for name, objects in boxes.items():
        write_image(root / "JPEGImages" / f"{name}.png")
        elements = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{left + (left < right)}</xmin><ymin>{top + (top < bottom)}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for left, top, right, bottom, label in objects
        )
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        note = root / "Annotations" / f"{name}.xml"
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"<annotation>{size}{elements}</annotation>")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, names in SPLITS.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def coco(root: Path, boxes: dict[str, list[Box]] = GOOD) -> Path:
    """The same as one COCO JSON a split, with a polygon around each box."""
    labels = ("cat", "dog")
    for split, names in SPLITS.items():
        notes = []
        for number, name in enumerate(names):
            write_image(root / split / f"{name}.png")
            for left, top, right, bottom, label in boxes[name]:
                polygon = [left, top, right, top, right, bottom, left, bottom]
                notes.append(
                    {
                        "id": len(notes),
                        "image_id": number,
                        "category_id": labels.index(label) + 1 if label in labels else 99,
                        "bbox": [left, top, right - left, bottom - top],
                        "segmentation": [polygon],
                    }
                )
        images = [
            {"id": number, "file_name": f"{name}.png", "width": 40, "height": 30}
            for number, name in enumerate(names)
        ]
        categories = [
            {"id": category_id, "name": name} for category_id, name in enumerate(labels, 1)
        ]
        annotations_json = {"images": images, "annotations": notes, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(annotations_json))
    return root


def table(root: Path, boxes: dict[str, list[Box]] = GOOD) -> Path:
    """The same as a CSV."""
    rows: list[list[Any]] = []
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / f"{name}.png")
            rows += [[f"{name}.png", *box, split] for box in boxes[name]]
            if not boxes[name]:
                rows.append([f"{name}.png", "", "", "", "", "", split])
    with open(root / "boxes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "left", "top", "right", "bottom", "label", "split"])
        writer.writerows(rows)
    return root / "boxes.csv"


LAYOUTS: dict[str, Callable[..., Path]] = {"voc": voc, "coco": coco, "boxes": table}


def masks(root: Path, arrays: dict[str, np.ndarray], split: str = "train") -> Path:
    """A folder as CamVid has it, of pictures and masks of the same size."""
    for name, array in arrays.items():
        write_image(root / split / f"{name}.png", array.shape[:2])
        (root / f"{split}annot").mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / f"{split}annot" / f"{name}.png")
    return root


def numbers(highest: int = 3, size: tuple[int, int] = (30, 40), seed: int = 0) -> np.ndarray:
    """A mask of all the numbers up to one."""
    mask = np.random.default_rng(seed).integers(0, highest + 1, size, np.uint8)
    mask[0, : highest + 1] = np.arange(highest + 1)
    return mask


def contents(root: Path) -> dict[str, bytes]:
    """All that lies below a folder."""
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def boxes_of(source: Dataset) -> Boxes:
    assert isinstance(source.annotations, Boxes)
    return source.annotations


def box_counts(boxes: Boxes, num_classes: int) -> torch.Tensor:
    """The boxes of each class in all images."""
    classes = np.concatenate([rows[:, 4] for rows in boxes.rows]).astype(np.int64)
    return torch.from_numpy(np.bincount(classes, minlength=num_classes))


def masks_of(source: Dataset) -> Masks:
    assert isinstance(source.annotations, Masks)
    return source.annotations


# boxes


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((5, 5, 5, 5), "has no area"),
        ((5, 5, 9, 5), "has no area"),
        ((9, 5, 5, 9), "swapped corners"),
        ((5, 9, 9, 5), "swapped corners"),
        ((41.5, 5, 45, 9), "outside the image of 40 x 30"),
        ((30, 20, 44, 29), "outside the image of 40 x 30"),
        ((-3, 2, 5, 5), "outside the image"),
        ((float("nan"), 2, 5, 5), "not finite numbers"),
        ((2, 2, float("inf"), 5), "not finite numbers"),
    ],
)
def test_invalid_boxes_are_named_with_the_reason(corners: tuple[float, ...], message: str) -> None:
    left, top, right, bottom = map(float, corners)
    with pytest.raises(ValueError, match=rf"cat .*{message}"):
        checked_box(BoxAnnotation("row 2", "cat", (left, top, right, bottom)), (30, 40))


def test_a_box_may_reach_out_by_one_pixel_as_libraries_count_from_0_and_from_1() -> None:
    mark = BoxAnnotation("row 2", "cat", (-1.0, 0.0, 41.0, 30.5))
    assert checked_box(mark, (30, 40)) == (0, 0, 40, 30)


@slow
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_three_layouts_of_boxes_are_equivalent(kind: Any, tmp_path: Path) -> None:
    path = LAYOUTS[kind](tmp_path)
    before = contents(tmp_path)
    for split, names in SPLITS.items():
        source = open_annotated(path, kind, split=split)
        assert source.classes == ("cat", "dog")
        assert [os.path.basename(p)[0] for p in source.paths or []] == list(names)
        for name, rows in zip(names, boxes_of(source).rows):
            expected = [(*box[:4], source.classes.index(box[4]), 0) for box in GOOD[name]]
            assert sorted(map(tuple, rows.tolist())) == sorted(expected)
    train = open_annotated(path, kind)
    assert train.labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert contents(tmp_path) == before


BAD_BOXES: list[tuple[Box, str]] = [
    ((7, 7, 7, 7, "dog"), "has no area"),
    ((9, 2, 3, 8, "dog"), "swapped corners"),
    ((2, 2, 60, 8, "dog"), "outside the image"),
    ((2, 2, 8, 8, "dgo"), "dgo"),
]


@slow
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(
    ("bad", "expected"), BAD_BOXES, ids=["area", "swapped", "outside", "class"]
)
def test_an_invalid_box_is_named_with_its_location_or_skipped(
    kind: Any, bad: Box, expected: str, tmp_path: Path
) -> None:
    """Whichever split it is in: a test does not fail for it when the training is done."""
    for split, name in (("train", "b"), ("test", "e")):
        spoilt = {**GOOD, name: [*GOOD[name], bad]}
        root = tmp_path / split
        root.mkdir()
        path = LAYOUTS[kind](root, spoilt)
        if kind == "coco" and bad[4] == "dgo":
            expected = "category_id 99"
        classes = LayoutOptions(classes=("cat", "dog"))
        with pytest.raises(ValueError, match="skip") as error:
            open_annotated(path, kind, options=classes)
        message = str(error.value)
        assert expected in message
        places = {"voc": f"{name}.xml, object", "coco": f"{split}.json, annotation", "boxes": "row"}
        assert places[kind] in message
        dataset = open_annotated(path, kind, split=split, on_unreadable="skip", options=classes)
        assert sum(map(len, boxes_of(dataset).rows)) == sum(len(GOOD[n]) for n in SPLITS[split])
        assert any(expected in warning for warning in dataset.warnings)


@slow
def test_a_class_without_training_boxes_is_named(tmp_path: Path) -> None:
    voc(tmp_path, {**GOOD, "e": [(2, 2, 9, 9, "horse")]})
    with pytest.raises(ValueError, match=r"e\.xml, object 1: the class 'horse' is unknown"):
        open_annotated(tmp_path, "voc")


@slow
def test_mismatches_between_lists_and_files_are_named(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "JPEGImages" / "b.png").unlink()
    (tmp_path / "Annotations" / "d.xml").unlink()
    with open(tmp_path / "ImageSets" / "Main" / "train.txt", "a") as file:
        file.write("ghost\na\n")
    with pytest.raises(ValueError, match=r"train\.txt, row 4") as error:
        open_annotated(tmp_path, "voc")
    for expected in ("row 2", "b.xml has no image", "'ghost': no such image", "row 5", "repeats",
                 "val.txt, row 1", "'d': no such annotation"):  # fmt: skip
        assert expected in str(error.value)
    dataset = open_annotated(tmp_path, "voc", on_unreadable="skip")
    assert len(dataset) == 2
    assert any("ghost" in warning for warning in dataset.warnings)


@slow
def test_invalid_and_mismatched_annotations_are_named(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations" / "b.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation></annotation>'
    )
    with pytest.raises(ValueError, match=r"a\.xml: cannot be read") as error:
        open_annotated(tmp_path, "voc")
    assert "entities" in str(error.value)
    other = tmp_path / "other"
    voc(other)
    write_image(other / "JPEGImages" / "a.png", (40, 30))
    with pytest.raises(
        ValueError, match=r"a\.xml: it states 40 x 30 pixels, but JPEGImages/a\.png"
    ):
        open_annotated(other, "voc")


@slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t["images"].append({"id": 9, "file_name": "z.png"}), "'z.png' is missing"),
        (
            lambda t: t["annotations"][0].update(image_id=77),
            "image_id 77 is not an image of this JSON",
        ),
        (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), "bbox is [1, 2, 3], not"),
        (lambda t: t["annotations"][0].update(bbox=["a", 2, 3, 4]), "bbox has 'a', not"),
        (lambda t: t["annotations"][1].update(id=0), "annotation 0: its id is used twice"),
        (lambda t: t["images"][0].update(id=1), "image 1: its id is used twice"),
        (lambda t: t["images"][0].update(file_name="../a.png"), "leaves the folder"),
        (lambda t: t["images"][1].update(file_name="a.png"), "'a.png' is in train already"),
        (lambda t: t["annotations"][0].update(segmentation=[[1, 2]]), "three corners"),
        (lambda t: t["annotations"][0].update(bbox=[1, 2, 3, 10**400]), "bbox has 1000"),
        (lambda t: t["annotations"][0].update(image_id=[1]), "image_id is [1], not"),
        (lambda t: t["annotations"][0].update(category_id={}), "category_id is {}, not"),
        (lambda t: t["annotations"][0].update(iscrowd="0"), "iscrowd is '0', not 0 or 1"),
        (lambda t: t["images"][0].update(height=10**9), "x 1000000000 pixels"),
        (
            lambda t: t["annotations"][0].update(segmentation={"size": [3, 3], "counts": [9]}),
            "3 x 3",
        ),
        (
            lambda t: t["annotations"][0].update(segmentation={"size": [30, 40], "counts": [9]}),
            "its runs have 9 pixels",
        ),
    ],
)
def test_errors_of_a_coco_json_are_named(
    change: Callable[[dict[str, Any]], None], expected: str, tmp_path: Path
) -> None:
    coco(tmp_path)
    result = json.loads((tmp_path / "train.json").read_text())
    change(result)
    (tmp_path / "train.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"train\.json, ") as error:
        open_annotated(tmp_path, "coco", options=MASKED)
    assert expected in str(error.value)
    assert len(open_annotated(tmp_path, "coco", on_unreadable="skip", options=MASKED))


def changed(root: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A folder as COCO has it, whose training JSON is another."""
    coco(root)
    result = json.loads((root / "train.json").read_text())
    change(result)
    (root / "train.json").write_text(json.dumps(result))
    return root


MASKED = LayoutOptions(instances=True)


def as_floats(content: dict[str, Any]) -> None:
    """As data frames write numbers."""
    of = {"images": ("id", "width", "height"), "categories": ("id",),
          "annotations": ("id", "image_id", "category_id")}  # fmt: skip
    for kind, keys in of.items():
        for entry in content[kind]:
            entry.update({key: float(entry[key]) for key in keys})


@pytest.mark.parametrize(
    "change",
    [
        lambda t: [image.pop("width") for image in t["images"]],
        lambda t: [image.update(file_name="train\\" + image["file_name"]) for image in t["images"]],
        as_floats,
    ],
)
def test_coco_jsons_of_other_programs_are_read(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    """Without the sizes of images, with the paths of Windows, with 3.0 for 3."""
    usual = boxes_of(open_annotated(coco(tmp_path / "a"), "coco", options=MASKED))
    other = boxes_of(open_annotated(changed(tmp_path / "b", change), "coco", options=MASKED))
    assert usual.digest(None) == other.digest(None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t["annotations"][1].pop("segmentation"), "annotation 1: dog has no mask"),
        (
            lambda t: t["annotations"][1].update(segmentation={"size": [30, 40], "counts": [1200]}),
            "annotation 1: dog has a mask without pixels",
        ),
        (
            lambda t: t["annotations"][1].update(segmentation=[[0, 0, 5, 0, 5, 5]]),
            "annotation 1: dog has a mask that lies outside its box",
        ),
        (lambda t: t.update(categories=[]), "the list categories is empty"),
    ],
)
def test_masks_outside_their_boxes_are_named(
    change: Callable[[dict[str, Any]], Any], expected: str, tmp_path: Path
) -> None:
    changed(tmp_path, change)
    with pytest.raises(ValueError, match=r"train\.json") as error:
        open_annotated(tmp_path, "coco", options=MASKED)
    assert expected in str(error.value)


def test_a_missing_image_is_one_error(tmp_path: Path) -> None:
    """And not one more for each of its boxes."""
    changed(tmp_path, lambda content: content["images"][0].update(file_name="z.png"))
    with pytest.raises(ValueError, match=r"'z\.png' is missing") as error:
        open_annotated(tmp_path, "coco")
    assert "annotation" not in str(error.value)


def test_a_thin_polygon_has_the_pixels_that_it_touches(tmp_path: Path) -> None:
    def thin(content: dict[str, Any]) -> None:
        content["annotations"][0].update(segmentation=[[2.6, 3.6, 9.6, 3.6, 9.6, 3.9, 2.6, 3.9]])

    source = open_annotated(changed(tmp_path, thin), "coco", options=MASKED)
    assert os.path.basename((source.paths or [])[0]) == "a.png"
    plane = boxes_of(source).masks_of(0, (30, 40))
    assert np.argwhere(plane[0]).tolist() == [[3, x] for x in range(2, 10)]


def test_a_data_set_without_any_box_is_refused(tmp_path: Path) -> None:
    changed(
        tmp_path,
        lambda content: [annotation.pop("segmentation") for annotation in content["annotations"]],
    )
    with pytest.raises(ValueError, match=r"no training image has a box: .*0: cat has no mask"):
        open_annotated(tmp_path, "coco", options=MASKED, on_unreadable="skip")
    assert len(open_annotated(tmp_path, "coco", split="val", on_unreadable="skip"))


def test_annotations_of_images_before_exif_rotation_are_named(tmp_path: Path) -> None:
    coco(tmp_path)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "a.png", exif=turned)
    with pytest.raises(
        ValueError, match="has 30 x 40; height and width are swapped, maybe by the EXIF"
    ):
        open_annotated(tmp_path, "coco")


@slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("z.png,1,2,3,4,cat,train", "row 8: z.png is missing"),
        ("../z.png,1,2,3,4,cat,train", "row 8: the path '../z.png' leaves the folder"),
        ("a.png,1,x,3,4,cat,train", "row 8: top 'x' is not a number"),
        ("a.png,2,3,12,10,cat,train", "row 8: repeats row 2"),
        ("a.png,1,2,3,4,cat,test", "row 8: a.png is in test here and in train in row 2"),
        ("a.png,1,2,3,4,cat,later", "row 8: split 'later'"),
        ("a.png,1,2,3", "row 8: 4 fields for 7 columns"),
    ],
)
def test_errors_of_a_csv_of_boxes_are_named_with_their_row(
    line: str, expected: str, tmp_path: Path
) -> None:
    path = table(tmp_path)
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError) as error:
        open_annotated(path, "boxes")
    assert expected in str(error.value)


@slow
def test_invalid_layouts_name_the_expected_files(tmp_path: Path) -> None:
    for kind, expected in (("voc", "JPEGImages"), ("coco", "train.json"), ("masks", "trainannot")):
        with pytest.raises(ValueError, match=expected):
            open_annotated(tmp_path, kind)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="missing"):
        open_annotated(tmp_path / "nowhere", "voc")
    path = tmp_path / "b.csv"
    path.write_text("path,label\na.png,cat\n")
    with pytest.raises(ValueError, match="left,top,right,bottom"):
        open_annotated(path, "boxes")
    voc(tmp_path / "set")
    with pytest.raises(ValueError, match="not packed"):
        pack(tmp_path / "set", tmp_path / "set.plusx")


# masks


@slow
def test_masks_are_read_by_number_palette_grey_and_colour(tmp_path: Path) -> None:
    """One meaning, four ways to write it down."""
    expected = numbers(2)
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    palette = Image.fromarray(expected).convert("P")
    palette.putpalette(colours.ravel().tolist())
    grey = np.repeat(expected[:, :, None], 3, 2)
    for name, pixels in (("number", expected), ("palette", palette), ("grey", grey)):
        root = masks(tmp_path / name, {"a": expected})
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(root / "trainannot" / "a.png")
        source = open_annotated(root, "masks", validation=0)
        assert source.classes == ("0", "1", "2")
        assert (masks_of(source).mask(0) == expected).all()
    for name, pixels in (("colours", colours[expected]), ("shown", palette)):
        root = masks(tmp_path / name, {"a": expected})
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(root / "trainannot" / "a.png")
        (root / "classes.csv").write_text("name,r,g,b\nground,0,0,0\nroad,128,0,0\n,0,128,0\n")
        source = open_annotated(root, "masks", validation=0)
        assert source.classes == ("ground", "road")
        assert (masks_of(source).mask(0) == np.where(expected == 2, 255, expected)).all()


@slow
def test_mask_values_are_classes_ignored_or_errors(tmp_path: Path) -> None:
    mask = numbers(3)
    mask[5, 5] = 255
    masks(tmp_path, {"a": mask, "b": numbers(3, seed=1)})
    dataset = open_annotated(tmp_path, "masks", validation=0)
    assert dataset.classes == ("0", "1", "2", "3")  # 255 is not judged
    assert masks_of(dataset).mask(0)[5, 5] == 255
    assert dataset.position_counts().sum() == 2 * 30 * 40 - 1
    named = LayoutOptions(classes=("x", "y", "z"), values=(3, 0, 1), ignore=(2,))
    source = open_annotated(tmp_path, "masks", validation=0, options=named)
    read = masks_of(source).mask(0)
    assert (read[mask == 3] == 0).all()
    assert (read[mask == 2] == 255).all()
    assert (read[mask == 1] == 2).all()
    with pytest.raises(ValueError, match=r"trainannot/a\.png: .* have the value 3") as error:
        open_annotated(tmp_path, "masks", options=LayoutOptions(classes=("x", "y", "z")))
    assert "classes are 0 to 2" in str(error.value)
    for wish, expected in (
        (LayoutOptions(classes=("x", "y"), values=(0,)), "a different value is needed"),
        (LayoutOptions(classes=("x", "y"), values=(1, 1)), "each of the 2 classes"),
        (LayoutOptions(classes=("x", "y"), ignore=(1,)), "ignore: 1 is the value of a class"),
    ):
        with pytest.raises(ValueError, match=expected):
            open_annotated(tmp_path, "masks", options=wish)


@pytest.mark.parametrize(
    ("array", "ending", "message"),
    [
        (np.eye(30, 40, dtype=np.uint8)[..., None] * np.array([9, 0, 0], np.uint8), "PNG",
         r"the masks are in colours.*9,0,0.*classes\.csv"),
        (numbers(), "JPEG", r"trainannot/a\.png: a JPEG"),
        (np.zeros((30, 40), np.uint8), "PNG", "only the values 0, 1 of which can be a class"),
        (np.full((30, 40), 255, np.uint8), "PNG", "only the values 255, 0 of which can be"),
    ],
)  # fmt: skip
def test_masks_without_two_values_are_named(
    array: np.ndarray, ending: str, message: str, tmp_path: Path
) -> None:
    masks(tmp_path, {"a": numbers(), "b": numbers()})
    for name in "ab":
        Image.fromarray(array).save(tmp_path / "trainannot" / f"{name}.png", format=ending)
    with pytest.raises(ValueError, match=message):
        open_annotated(tmp_path, "masks")


@slow
def test_two_values_0_and_255_are_two_classes(tmp_path: Path) -> None:
    masks(tmp_path, {name: numbers(1, seed=ord(name)) * 255 for name in "abcd"})
    source = open_annotated(tmp_path, "masks", validation=1)
    assert source.classes == ("0", "255")
    assert set(np.unique(masks_of(source).mask(0))) == {0, 1}


@slow
def test_mismatched_masks_are_named(tmp_path: Path) -> None:
    masks(tmp_path, {name: numbers(seed=ord(name)) for name in "abcdefg"})
    notes = tmp_path / "trainannot"
    Image.fromarray(numbers(size=(30, 41))).save(notes / "a.png")
    (notes / "b.png").unlink()
    (tmp_path / "train" / "c.png").unlink()
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(colours).save(notes / "d.png")
    Image.fromarray(numbers()).save(notes / "e.png", format="JPEG")
    whole = (notes / "f.png").read_bytes()
    (notes / "f.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train/b\.png: no mask") as listed:
        open_annotated(tmp_path, "masks")
    assert "trainannot/c.png: no image" in str(listed.value)
    dataset = open_annotated(tmp_path, "masks", on_unreadable="skip", validation=0)
    assert [os.path.basename(path) for path in dataset.paths or []] == ["g.png"]
    warnings = "\n".join(dataset.warnings)
    for expected in (
        "a.png: it has 41 x 30 pixels, its image 40 x 30",
        "d.png: a colour image",
        "e.png: a JPEG",
        "f.png: ",
    ):
        assert expected in warnings
    write_image(tmp_path / "train" / "c.png")
    Image.fromarray(numbers()).save(notes / "b.png")
    with pytest.raises(ValueError, match="masks cannot be used") as error:
        open_annotated(tmp_path, "masks")
    assert "d.png: a colour image" in str(error.value)


@slow
def test_patterns_select_test_images_and_the_seed_validation_images(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / "image" / f"{index:02}.png")
        (tmp_path / "label").mkdir(exist_ok=True)
        Image.fromarray(numbers(seed=index)).save(tmp_path / "label" / f"{index:02}.png")
    wish = LayoutOptions(test="0[0-2]")
    splits = {
        split: {
            os.path.basename(path)
            for path in open_annotated(
                tmp_path, "masks", split=split, seed=3, validation=2, options=wish
            ).paths
            or []
        }
        for split in ("train", "validation", "test", "all")
    }
    assert splits["test"] == {"00.png", "01.png", "02.png"}
    assert len(splits["validation"]) == 2
    assert len(splits["train"]) == 5
    assert splits["train"] | splits["validation"] | splits["test"] == splits["all"]
    for pattern, message in (("(", "not a regular expression"), ("x", "matches 0 of the 10")):
        with pytest.raises(ValueError, match=message):
            open_annotated(tmp_path, "masks", options=LayoutOptions(test=pattern))


@slow
def test_connected_parts_of_masks_become_boxes(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[2:12, 3:9] = 1
    mask[15:25, 3:9] = 1
    mask[25, 9] = 1  # touches at a corner
    mask[5:7, 20:22] = 1  # too small to be judged
    mask[10:20, 20:39] = 2
    masks(tmp_path, {"a": mask})
    wish = LayoutOptions(classes=("road", "man", "car"), components=("car", "man"), min_area=20)
    source = open_annotated(tmp_path, "masks", validation=0, options=wish)
    assert source.classes == ("car", "man")
    assert boxes_of(source).rows[0].tolist() == [
        [20, 10, 39, 20, 0, 0],
        [3, 2, 9, 12, 1, 0],
        [20, 5, 22, 7, 1, 1],
        [3, 15, 10, 26, 1, 0],
    ]
    with pytest.raises(ValueError, match="did you mean 'car'"):
        open_annotated(
            tmp_path, "masks", options=LayoutOptions(classes=wish.classes, components=("cra",))
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_a_coco_json_is_read_or_named(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "val.json").exists():
        coco(tmp_path)
        (tmp_path / "first").write_bytes((tmp_path / "train.json").read_bytes())
    result = json.loads((tmp_path / "first").read_bytes())
    node: Any = result
    while True:
        key = data.draw(
            st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
        )
        below = node[key]
        if not isinstance(below, dict | list) or not below or data.draw(st.integers(0, 5)) == 0:
            break
        node = below
    node[key] = data.draw(JSON)
    (tmp_path / "train.json").write_text(json.dumps(result))
    for on_unreadable in ("error", "skip"):
        try:
            source = open_annotated(
                tmp_path, "coco", on_unreadable=on_unreadable, options=LayoutOptions(instances=True)
            )
        except ValueError as error:
            assert str(error)
            continue
        for rows in boxes_of(source).rows:
            assert (rows[:, :2] < rows[:, 2:4]).all()
            assert ((rows[:, :4] >= 0) & (rows[:, :4] <= 40)).all()


# run lengths and polygons

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@slow
@given(SHAPES, st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_run_lengths_are_those_of_cocos_own_library(
    size: tuple[int, int], seed: int, share: float
) -> None:
    library = pytest.importorskip("faster_coco_eval.core.mask")
    expected = np.random.default_rng(seed).random(size) < share
    packed = library.encode(np.asfortranarray(expected.astype(np.uint8)))
    text = packed["counts"]
    text = text.decode() if isinstance(text, bytes) else text
    assert (segmentation_mask(RunLengths(size=size, counts=text), size) == expected).all()
    flat = expected.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    counts = [0, *runs] if flat[0] else runs
    assert (segmentation_mask(RunLengths(size=size, counts=counts), size) == expected).all()


def test_excessive_run_lengths_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="longer than any image"):
        segmentation_mask(RunLengths(size=(30, 40), counts="o" * 10**6), (30, 40))


@slow
def test_the_folder_of_masks_is_found_among_several(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "images" / "b.png", seed=1)
    (tmp_path / "masks").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        Image.fromarray(numbers()).save(tmp_path / "masks" / f"{name}.png")
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert len(open_annotated(tmp_path, "masks", split="all")) == 2
    Image.fromarray(numbers()).save(tmp_path / "labels" / "a.png")
    with pytest.raises(ValueError, match="masks are in masks and in labels: remove one"):
        open_annotated(tmp_path, "masks", split="all")


@slow
def test_an_image_of_two_jsons_is_named(tmp_path: Path) -> None:
    coco(tmp_path)
    result = json.loads((tmp_path / "test.json").read_text())
    result["images"][0]["file_name"] = "train/a.png"
    (tmp_path / "test.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"train\.json, image 0: 'a\.png' is in test already"):
        open_annotated(tmp_path, "coco")


@slow
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 15), st.integers(1, 15))
def test_a_polygon_on_the_edges_of_pixels_holds_just_these(
    left: int, top: int, width: int, height: int
) -> None:
    right, bottom = left + width, top + height
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
    expected = np.zeros((40, 40), np.bool_)
    expected[top:bottom, left:right] = True
    assert (polygon_mask(corners, (40, 40)) == expected).all()


@slow
def test_polygons_become_the_masks_of_their_boxes(tmp_path: Path) -> None:
    coco(tmp_path)
    source = open_annotated(tmp_path, "coco", options=LayoutOptions(instances=True))
    truth = boxes_of(source)
    for index, rows in enumerate(truth.rows):
        planes = truth.masks_of(index, (30, 40))
        for (left, top, right, bottom, *_), plane in zip(rows.astype(int).tolist(), planes):
            expected = np.zeros((30, 40), np.uint8)
            expected[top:bottom, left:right] = 1
            assert (plane == expected).all()
    listing = read_coco(str(tmp_path / "train.json"))
    assert not any(image.split for image in listing.images)


# batches


@slow
def test_batched_boxes_map_back_to_the_stored_image(tmp_path: Path) -> None:
    source = open_annotated(voc(tmp_path), "voc", size=(64, 64))
    with Loader(source, split="validation", batch_size=3) as loader:
        (batch,) = loader.epoch(0)
    assert batch.inputs.shape == (3, 3, 64, 64)
    assert batch.targets is not None
    assert batch.targets.shape == (3, 2, 6)
    assert torch.allclose(batch.extras["scale"], torch.full((3,), 1.6))
    for rows, stored in zip(batch.targets, boxes_of(source).rows):
        used = rows[rows[:, 4] >= 0]
        assert len(used) == len(stored)
        assert torch.allclose(used[:, :4] / 1.6, torch.from_numpy(stored[:, :4]), atol=1e-4)
    # 40 x 30 becomes 64 x 48; what is below is no image
    assert (batch.inputs[:, :, 48:] == 0).all()
    assert (batch.inputs[:, :, :48] != 0).any()


@slow
def test_without_a_size_images_stay_and_a_batch_is_padded(tmp_path: Path) -> None:
    masks(tmp_path, {"a": numbers(size=(30, 40)), "b": numbers(size=(50, 33))})
    source = open_annotated(tmp_path, "masks", validation=0)
    with Loader(source, split="validation", batch_size=2) as loader:
        (batch,) = loader.epoch(0)
    assert batch.inputs.shape == (2, 3, 64, 64)
    assert (batch.targets[0, :30, :40].numpy() == masks_of(source).mask(0)).all()
    assert (batch.targets[1, :50, :33].numpy() == masks_of(source).mask(1)).all()
    outside = torch.ones(2, 64, 64, dtype=torch.bool)
    outside[0, :30, :40] = False
    outside[1, :50, :33] = False
    assert (batch.targets[outside] == 255).all()
    assert (batch.inputs.permute(0, 2, 3, 1)[outside] == 0).all()


@slow
def test_images_without_annotations_have_their_scale(tmp_path: Path) -> None:
    source = open_annotated(voc(tmp_path), "voc", size=(15, 20))
    source = replace(source, annotations=Boxes.none(len(source)))
    with Loader(source, split="validation", batch_size=3) as loader:
        (batch,) = loader.epoch(0)
    assert batch.targets is not None
    assert batch.targets.shape == (3, 1, 6)
    assert (batch.targets[:, :, 4] == -1).all()
    assert (batch.extras["scale"] == 0.5).all()


@slow
@pytest.mark.parametrize("kind", ["voc", "masks"])
def test_pixels_are_the_same_for_any_number_of_workers_and_any_batch(
    kind: Any, tmp_path: Path
) -> None:
    """And whether a scene was decoded now or an epoch ago."""
    if kind == "voc":
        voc(tmp_path)
    else:
        masks(tmp_path, {name: numbers(seed=ord(name)) for name in "abc"})
    source = open_annotated(tmp_path, kind, size=(32, 40), validation=None if kind == "voc" else 0)
    augment = "zoom1.5 flip rotate10 jitter.3 erase.5"
    pixels = []
    for workers, size in ((0, 3), (2, 3), (0, 1)):
        with Loader(
            source, augment=augment, batch_size=size, workers=workers, seed=4, drop_last=False
        ) as loader:
            epochs = [list(loader.epoch(number)) for number in (0, 1, 0)]
        assert all(
            torch.equal(first.inputs, third.inputs) for first, third in zip(epochs[0], epochs[2])
        )
        pixels.append(torch.cat([batch.inputs for batch in epochs[1]]))
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


@slow
def test_a_deleted_file_is_named(tmp_path: Path) -> None:
    source = open_annotated(voc(tmp_path), "voc", size=(32, 32))
    (tmp_path / "JPEGImages" / "a.png").unlink()
    refused = pytest.raises(RuntimeError, match=r"JPEGImages/a\.png cannot be used any more")
    with Loader(source, split="validation") as loader, refused:
        list(loader.epoch(0))


@slow
def test_a_fingerprint_changes_with_a_box_and_with_a_mask(tmp_path: Path) -> None:
    fingerprints = set()
    for right in (9, 10):
        root = tmp_path / f"box{right}" / "set"
        root.mkdir(parents=True)
        changed = {**GOOD, "b": [(1, 1, right, 9, "dog")]}
        fingerprints.add(open_annotated(voc(root, changed), "voc").fingerprint())
    for seed in (0, 1):
        root = tmp_path / f"mask{seed}" / "set"
        mask = numbers(seed=0)
        mask[20, 20] = seed
        fingerprints.add(
            open_annotated(masks(root, {"a": mask}), "masks", validation=0).fingerprint()
        )
    assert len(fingerprints) == 4


# the made set, recipes, and what is published


def few_cells(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A set of fewer images, which are drawn more quickly."""
    monkeypatch.setattr(cells, "COUNTS", dict.fromkeys(cells.COUNTS, count))
    monkeypatch.setattr(cells, "_rendered", cells._rendered.__wrapped__)


@slow
def test_synthetic_cells_fit_their_boxes_and_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    few_cells(monkeypatch, 12)
    source = open_cells("validation")
    truth = boxes_of(source)
    assert len(source) == 12
    assert box_counts(truth, 2).min() > 10
    overlapping = 0
    for index in range(12):
        planes = truth.masks_of(index, (128, 128))
        assert planes.sum(0).max() <= 1  # a mask is what is to be seen
        for row, plane in zip(truth.rows[index], planes):
            down, along = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
            tight = [along[0], down[0], along[-1] + 1, down[-1] + 1]
            assert row[:4].tolist() == tight
        boxes = truth.rows[index][:, :4]
        meet = (boxes[:, None, :2] < boxes[None, :, 2:]).all(2)
        overlapping += int((meet & meet.T).sum() > len(boxes))
    assert overlapping > 3
    test = open_cells("test")
    assert not torch.equal(images_of(source), test.items.images)


RECIPE = """
epochs = 1
[net]
base = "resnet18"
[head]
kind = "{head}"
[task]
kind = "{task}"
[data]
{data}
[optim]
kind = "sgd"
lr = 0.1
"""


@slow
def test_recipes_open_annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc(tmp_path / "pets")
    monkeypatch.setenv("PLUSX_DATA", str(tmp_path))
    table = 'kind = "voc"\npath = "pets"\nsize = [32, 48]'
    recipe = parse_recipe(RECIPE.format(head="fcos", task="detect", data=table), where="a.toml")
    sets = open_sets(recipe)
    assert sets.validation is not None
    assert (len(sets.train), len(sets.validation)) == (3, 1)
    assert sets.train.modality.size == (32, 48)
    few_cells(monkeypatch, 4)
    table = 'kind = "cells"\ntrain = 0.5'
    text = RECIPE.format(head="mask-rcnn", task="detect", data=table)
    dataset = open_split(parse_recipe(text, where="a.toml"), "train")
    assert len(dataset) == 2
    assert boxes_of(dataset).masks is not None


def published(name: str) -> Path:
    root = os.environ.get("PLUSX_DATA")
    if root is None or not (Path(root) / name).exists():
        pytest.skip(f"PLUSX_DATA has no {name}")
    return Path(root) / name


@slow
@pytest.mark.data
def test_bccd_has_two_boxes_without_area() -> None:
    path = published("BCCD")
    with pytest.raises(ValueError, match=r"00343\.xml, object 4: RBC .* has no area") as error:
        open_annotated(path, "voc")
    assert "BloodImage_00338.xml, object 13" in str(error.value)
    counts = torch.zeros(3, dtype=torch.int64)
    for split, images in (("train", 205), ("validation", 87), ("test", 72)):
        source = open_annotated(path, "voc", split=split, on_unreadable="skip")
        assert len(source) == images
        assert source.classes == ("Platelets", "RBC", "WBC")
        counts += box_counts(boxes_of(source), 3)
    # all that are published but for the two
    assert counts.tolist() == [361, 4153, 372]


@slow
@pytest.mark.data
def test_camvid_and_the_membranes_have_their_splits() -> None:
    wish = LayoutOptions(ignore=(11,))
    sizes = [
        len(open_annotated(published("camvid"), "masks", split=split, options=wish))
        for split in ("train", "validation", "test")
    ]
    assert sizes == [367, 101, 233]
    test = open_annotated(
        published("isbi2012"),
        "masks",
        split="test",
        options=LayoutOptions(
            test="2[0-3]", channels=1, classes=("membrane", "cell"), values=(0, 255)
        ),
    )
    assert [os.path.basename(path) for path in test.paths or []] == [
        "20.png",
        "21.png",
        "22.png",
        "23.png",
    ]
    shares = test.position_counts() / test.position_counts().sum()
    assert 0.1 < shares[0] < 0.35
