"""Boxes and masks as other programs write them, and the mistakes that their users report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.annotation_index import LayoutOptions
from plusx.data.readers.layouts import kinds_of
from plusx.data.readers.yolo import read_yolo
from plusx.errors import UserError
from plusx.recipe import load_recipe
from plusx.run.build import open_split
from test_scenes import (
    GOOD,
    MASKED,
    SPLITS,
    Box,
    _cache,  # noqa: F401 - a fixture
    boxes_of,
    changed,
    coco,
    masks,
    masks_of,
    numbers,
    table,
    voc,
    write_image,
)


SIZE = (30, 40)


def fractions(box: Box) -> Box:
    """A box of an image of 40 x 30 pixels as fractions."""
    left, top, right, bottom, label = box
    return left / 40, top / 30, right / 40, bottom / 30, label


@pytest.mark.parametrize("layout", [coco, table, voc])
def test_s1_boxes_as_fractions_are_one_error(layout: Callable[..., Path], tmp_path: Path) -> None:
    boxes = {name: [fractions(box) for box in rows] for name, rows in GOOD.items()}
    if layout is voc:  # whose corners count from 1
        boxes = {n: [(b[0] - 1, b[1] - 1, *b[2:]) for b in rows] for n, rows in boxes.items()}
    path = layout(tmp_path, boxes)
    kind: Any = {coco: "coco", table: "boxes", voc: "voc"}[layout]
    for on_unreadable in ("error", "skip"):
        with pytest.raises(
            ValueError, match=r"all 5 boxes lie within one pixel.*fractions"
        ) as error:
            open_annotated(path, kind, on_unreadable=on_unreadable)
        assert 'kind = "yolo"' in str(error.value)


def test_s1_a_box_as_fractions_among_others_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, {**GOOD, "a": [*GOOD["a"], (0.1, 0.2, 0.5, 0.9, "cat")]})
    with pytest.raises(ValueError, match=r"row 4: cat .* is within one pixel"):
        open_annotated(path, "boxes")


def as_cvat(root: Path) -> Path:
    """annotations/instances_default.json and images/."""
    coco(root)
    content = json.loads((root / "train.json").read_text())
    for path in root.glob("*.json"):
        path.unlink()
    (root / "train").rename(root / "images")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return root


def as_roboflow(root: Path) -> Path:
    """train/_annotations.coco.json beside the images, and the same in valid and test."""
    coco(root)
    for split in SPLITS:
        (root / f"{split}.json").rename(root / split / "_annotations.coco.json")
    (root / "val").rename(root / "valid")
    (root / "README.roboflow.txt").write_text("about this set")
    return root


def as_fiftyone(root: Path) -> Path:
    """data/ and labels.json."""
    coco(root)
    (root / "train.json").rename(root / "labels.json")
    (root / "train").rename(root / "data")
    for name in ("val", "test"):
        (root / f"{name}.json").unlink()
    return root


def as_one_json(root: Path) -> Path:
    """A JSON in a folder of its own, given by its path, and ../images."""
    as_cvat(root)
    (root / "annotations").rename(root / "json")
    return root / "json" / "instances_default.json"


@pytest.mark.parametrize("layout", [as_cvat, as_roboflow, as_fiftyone, as_one_json])
def test_s2_coco_as_other_programs_export_it(layout: Callable[..., Path], tmp_path: Path) -> None:
    usual = boxes_of(open_annotated(coco(tmp_path / "usual"), "coco", validation=0))
    path = layout(tmp_path / "other")
    assert list(kinds_of(path)) == ["coco"]
    other = open_annotated(path, "coco", validation=None if layout is as_roboflow else 0)
    assert boxes_of(other).digest(None) == usual.digest(None)
    if layout is as_roboflow:
        assert len(open_annotated(path, "coco", split="validation")) == 1
        assert len(open_annotated(path, "coco", split="test")) == 1


def test_s2_an_unknown_layout_names_the_expected_files(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"instances_\*\.json.*_annotations\.coco\.json.*labels"):
        open_annotated(tmp_path, "coco")
    as_cvat(tmp_path / "set")
    (tmp_path / "set" / "images").rename(tmp_path / "set" / "photos")
    with pytest.raises(ValueError, match=r"a\.png' is missing: looked for beside the JSON"):
        open_annotated(tmp_path / "set", "coco")


def test_s2_several_jsons_without_splits_need_a_choice(tmp_path: Path) -> None:
    as_fiftyone(tmp_path)
    (tmp_path / "more.json").write_bytes((tmp_path / "labels.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"2 COCO JSONs, none named after a split \(labels.json, more.json"
    ):
        open_annotated(tmp_path, "coco")
    (tmp_path / "labels.json").rename(tmp_path / "train.json")
    source = open_annotated(tmp_path, "coco")
    assert any("more.json" in warning for warning in source.warnings)


ENCODED = ("gb2312", "GBK", "utf-16", "latin-1")


@pytest.mark.parametrize("encoding", ENCODED)
def test_s3_xml_of_other_encodings_is_read(encoding: str, tmp_path: Path) -> None:
    label = "caf\xe9" if encoding == "latin-1" else "\u732b"
    voc(tmp_path, {name: [(*box[:4], "cat") for box in boxes] for name, boxes in GOOD.items()})
    for path in (tmp_path / "Annotations").iterdir():
        text = path.read_text().replace("cat", label)
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding))
    source = open_annotated(tmp_path, "voc")
    assert source.classes == (label,)
    assert sum(map(len, boxes_of(source).rows)) == 3


def test_s3_xml_of_an_unknown_encoding_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    voc(tmp_path)
    note = tmp_path / "Annotations" / "a.xml"
    note.write_bytes(b'<?xml version="1.0" encoding="x-klingon"?>' + note.read_bytes())
    other = tmp_path / "Annotations" / "b.xml"
    other.write_bytes(b'<?xml version="1.0" encoding="ascii"?><annotation>\xff</annotation>')
    with pytest.raises(ValueError, match=r"a\.xml: cannot be read: .*x-klingon") as error:
        open_annotated(tmp_path, "voc")
    assert "b.xml: cannot be read" in str(error.value)
    classes = LayoutOptions(classes=("cat", "dog"))
    dataset = open_annotated(tmp_path, "voc", split="all", on_unreadable="skip", options=classes)
    assert len(dataset) == 3
    entities = '<!DOCTYPE a [<!ENTITY x "y">]><annotation></annotation>'
    note.write_bytes(entities.encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.xml: cannot be read: it declares entities"):
        open_annotated(tmp_path, "voc")


TWO = LayoutOptions(classes=("ground", "road"))


def test_s4_masks_of_0_and_255_need_their_values(tmp_path: Path) -> None:
    masks(tmp_path, {name: numbers(1, seed=ord(name)) * 255 for name in "abcd"})
    with pytest.raises(ValueError, match=r"the values 0 and 1: set values = \[0, 255\]"):
        open_annotated(tmp_path, "masks", options=TWO)
    stated = LayoutOptions(classes=("ground", "road"), values=(0, 255))
    assert (open_annotated(tmp_path, "masks", options=stated).position_counts() > 0).all()


def test_s4_masks_of_0_and_255_among_those_of_0_and_1_are_named(tmp_path: Path) -> None:
    arrays = {name: numbers(1, seed=ord(name)) for name in "abcd"}
    masks(tmp_path, {**arrays, "c": arrays["c"] * 255})
    for options in (TWO, LayoutOptions()):
        with pytest.raises(
            ValueError, match=r"trainannot/c\.png: it has only the values 0 and 255"
        ):
            open_annotated(tmp_path, "masks", options=options)
    ignored = LayoutOptions(classes=("ground", "road"), ignore=(255,))
    assert len(open_annotated(tmp_path, "masks", options=ignored, split="all")) == 4


def test_s4_a_class_without_a_pixel_in_training_is_an_error(tmp_path: Path) -> None:
    masks(tmp_path, {name: numbers(1, seed=ord(name)) for name in "abcd"})
    three = LayoutOptions(classes=("ground", "road", "sky"))
    with pytest.raises(ValueError, match="the class 'sky' has no pixel in the training masks"):
        open_annotated(tmp_path, "masks", options=three)
    assert len(open_annotated(tmp_path, "masks", options=three, split="all")) == 4


def test_s11_anti_aliased_masks_and_instance_numbers_are_no_classes(tmp_path: Path) -> None:
    masks(tmp_path / "soft", {name: numbers(39, seed=ord(name)) for name in "abcd"})
    with pytest.raises(ValueError, match=r"the masks have 40 values \(0, 1, .*anti-aliased"):
        open_annotated(tmp_path / "soft", "masks")
    root = masks(tmp_path / "ids", {name: numbers(1) for name in "ab"})
    for path in (root / "trainannot").iterdir():
        Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(path)
    with pytest.raises(ValueError, match=r"1199 values"):
        open_annotated(root, "masks")


def test_s11_masks_as_cvat_exports_them(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [250, 50, 83]], np.uint8)
    for name in "ab":
        write_image(tmp_path / "JPEGImages" / f"{name}.png")
        for folder in ("SegmentationClass", "SegmentationObject"):
            (tmp_path / folder).mkdir(exist_ok=True)
            mask = Image.fromarray(colours[numbers(1, seed=ord(name))])
            mask.save(tmp_path / folder / f"{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("a\nb\n")
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\n"
    )
    assert list(kinds_of(tmp_path)) == ["masks"]
    source = open_annotated(tmp_path, "masks", split="all")
    assert source.classes == ("background", "cat")
    assert (masks_of(source).mask(0) == numbers(1, seed=ord("a"))).all()
    assert any("SegmentationObject is not read" in warning for warning in source.warnings)
    (tmp_path / "labelmap.txt").write_text("cat:250,50::\n")
    with pytest.raises(ValueError, match=r"labelmap\.txt, row 1: '250,50::' is not a colour"):
        open_annotated(tmp_path, "masks")


def test_s11_voc_with_images_and_annotations(tmp_path: Path) -> None:
    usual = boxes_of(open_annotated(voc(tmp_path / "usual"), "voc", split="all"))
    root = voc(tmp_path / "pairs")
    (root / "JPEGImages").rename(root / "images")
    (root / "Annotations").rename(root / "annotations")
    together = tmp_path / "roboflow"
    voc(together)
    for split, names in SPLITS.items():
        (together / split).mkdir()
        for name in names:
            (together / "JPEGImages" / f"{name}.png").rename(together / split / f"{name}.png")
            (together / "Annotations" / f"{name}.xml").rename(together / split / f"{name}.xml")
    for folder in ("JPEGImages", "Annotations"):
        (together / folder).rmdir()
    for path in (root, together):
        assert list(kinds_of(path)) == ["voc"]
        assert boxes_of(open_annotated(path, "voc", split="all")).digest(None) == usual.digest(None)
        assert len(open_annotated(path, "voc", split="test")) == 1


def test_s11_lists_may_have_endings_and_paths(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a.png\nJPEGImages/b.png\nc\n")
    assert len(open_annotated(root, "voc")) == 3


def as_texts(content: dict[str, Any]) -> None:
    """Ids that one program writes as text and the next does not."""
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])


def as_names(content: dict[str, Any]) -> None:
    """Categories whose ids are text."""
    for category in content["categories"]:
        category["id"] = f"label-{category['id']}"
    for annotation in content["annotations"]:
        annotation["category_id"] = f"label-{annotation['category_id']}"


@pytest.mark.parametrize("change", [as_texts, as_names])
def test_s11_ids_may_be_texts(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    usual = boxes_of(open_annotated(coco(tmp_path / "usual"), "coco"))
    root = changed(tmp_path / "texts", change)
    for split in ("val", "test"):
        (root / f"{split}.json").unlink()
    source = boxes_of(open_annotated(root, "coco", validation=0))
    assert source.digest(None) == usual.digest(None)
    assert source.image_ids == [0, 1, 2]
    assert source.category_ids == ((1, 2) if change is as_texts else ("label-1", "label-2"))


def test_s11_outlines_are_checked_where_masks_are_wanted(tmp_path: Path) -> None:
    def line(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]

    root = changed(tmp_path, line)
    assert len(open_annotated(root, "coco"))
    with pytest.raises(ValueError, match=r"annotation 0: its segmentation .* three corners"):
        open_annotated(root, "coco", options=MASKED)


def test_s11_skipped_and_used_annotations_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path, {**GOOD, "a": [*GOOD["a"], (5, 5, 5, 9, "cat")]})
    source = open_annotated(path, "boxes", on_unreadable="skip")
    assert "boxes: 1 skipped, 3 can be used" in source.warnings


def test_s11_a_panoptic_json_is_refused_with_the_reason(tmp_path: Path) -> None:
    def panoptic(content: dict[str, Any]) -> None:
        content["annotations"] = [{"image_id": 0, "file_name": "a.png", "segments_info": []}]

    with pytest.raises(ValueError, match=r"train\.json is a panoptic JSON"):
        open_annotated(changed(tmp_path, panoptic), "coco")


@pytest.mark.parametrize("layout", [coco, table, voc])
def test_s11_a_box_that_is_there_twice_is_named(
    layout: Callable[..., Path], tmp_path: Path
) -> None:
    path = layout(tmp_path, {**GOOD, "a": [*GOOD["a"], GOOD["a"][0]]})
    kind: Any = {coco: "coco", table: "boxes", voc: "voc"}[layout]
    with pytest.raises(ValueError, match=r"(annotation 2|row 4|object 3): repeats \w+ \d"):
        open_annotated(path, kind)
    source = open_annotated(path, kind, on_unreadable="skip")
    assert sum(map(len, boxes_of(source).rows)) == 3


@pytest.mark.parametrize("layout", [coco, table, voc, masks])
def test_x9_a_link_out_of_the_set_is_refused(layout: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.png")
    root = tmp_path / "set"
    root.mkdir()
    if layout is masks:
        masks(root, {name: numbers(1, seed=ord(name)) for name in "ab"})
        path, image = root, root / "train" / "a.png"
    else:
        path = layout(root)
        image = next(root.rglob("a.png"))
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere" / "a.png")
    kind: Any = {coco: "coco", table: "boxes", voc: "voc", masks: "masks"}[layout]
    with pytest.raises(ValueError, match=r"a\.png: a link that leaves the folder"):
        open_annotated(path, kind)
    source = open_annotated(path, kind, on_unreadable="skip", split="all")
    assert not any(name.endswith("a.png") for name in source.paths or [])


@pytest.mark.parametrize("layout", ["yolo", "voc", "coco"])
def test_x9_an_annotation_that_is_a_link_out_of_the_set_is_refused(
    layout: Any, tmp_path: Path
) -> None:
    root = {"yolo": yolo, "voc": voc, "coco": coco}[layout](tmp_path / "set")
    path = next(p for end in ("a.txt", "a.xml", "train.json") for p in root.rglob(end))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{path.name}: a link that leaves the folder"):
        open_annotated(root, layout)


def yolo(root: Path, nested: str = "images/SPLIT", description: str = "") -> Path:
    """GOOD as text files; nested: where the images of a split are."""
    for split, names in SPLITS.items():
        images = root / nested.replace("SPLIT", split)
        labels = root / nested.replace("SPLIT", split).replace("images", "labels")
        labels.mkdir(parents=True, exist_ok=True)
        for name in names:
            write_image(images / f"{name}.png")
            lines = []
            for box in GOOD[name]:
                left, top, right, bottom, label = fractions(box)
                sides = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
                lines.append(" ".join(map(str, (("cat", "dog").index(label), *sides))))
            (labels / f"{name}.txt").write_text("\n".join(lines))
    text = description or "names: [cat, dog]\nnc: 2\n" + "".join(
        f"{split}: {nested.replace('SPLIT', split)}\n" for split in SPLITS
    )
    (root / "data.yaml").write_text(text)
    return root


ROBOFLOW = """train: ../train/images
val: ../val/images
test: ../test/images
nc: 2
names: ['cat', 'dog']
roboflow: {license: MIT}
"""
ULTRALYTICS = """path: /content/datasets/pets  # of another machine
train: images/train
val: images/val
test: images/test
names:
  0: cat
  1: dog
"""


@pytest.mark.parametrize(
    ("nested", "description"),
    [
        ("images/SPLIT", ""),
        ("SPLIT/images", ""),
        ("SPLIT/images", ROBOFLOW),
        ("images/SPLIT", ULTRALYTICS),
    ],
)
def test_s11_the_usual_yolo_layout_is_read(nested: str, description: str, tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo", nested, description)
    usual = coco(tmp_path / "coco")
    assert list(kinds_of(root)) == ["yolo"]
    for path in (root, root / "data.yaml"):
        for split in ("train", "validation", "test"):
            source = open_annotated(path, "yolo", split=split)
            expected = boxes_of(open_annotated(usual, "coco", split=split)).rows
            assert source.classes == ("cat", "dog")
            for rows, other in zip(boxes_of(source).rows, expected, strict=True):
                assert np.allclose(rows, other, atol=1e-4)


def test_s11_yolo_without_a_description_has_its_names_in_classes_txt(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "data.yaml").unlink()
    assert list(kinds_of(root)) == ["yolo"]
    assert open_annotated(root, "yolo").classes == ("0", "1")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert open_annotated(root, "yolo").classes == ("cat", "dog")


def test_s11_yolo_has_polygons(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "b.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5")
    (root / "labels" / "train" / "a.txt").write_text("")
    source = boxes_of(open_annotated(root, "yolo", options=MASKED))
    assert [len(rows) for rows in source.rows] == [0, 1, 0]
    assert source.rows[1][0].tolist() == [0, 0, 20, 15, 1, 0]
    plane = source.masks_of(1, SIZE)[0]
    assert plane[:15, :20].all()
    assert plane.sum() == 300
    (root / "labels" / "train" / "a.txt").write_text("0 0.2 0.2 0.1 0.1")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: cat has no mask"):
        open_annotated(root, "yolo", options=MASKED)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", r"the class 2 is not one of 0 to 1 \(cat, dog\)"),
        ("0.5 0.5 0.5 0.1 0.1", "the class '0.5' is not an integer from 0"),
        ("nan 0.5 0.5 0.1 0.1", "the class 'nan' is not an integer from 0"),
        ("cat 0.5 0.5 0.1 0.1", "'cat 0.5 0.5 0.1 0.1' is not a class and numbers"),
        ("0 20 15 8 8", "20 15 8 8 are not from 0 to 1: fractions"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers: a class with x, y, width and height"),
        ("0 0.5 0.5 0.1", "4 numbers: a class"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 nan 0.5 0.1 0.1", "nan 0.5 0.1 0.1 are not from 0 to 1"),
        ("0 0.9 0.5 0.8 0.1", "is outside the image"),
    ],
)
def test_s11_errors_of_yolo_labels_are_named(line: str, reason: str, tmp_path: Path) -> None:
    root = yolo(tmp_path)
    with open(root / "labels" / "train" / "a.txt", "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"labels/train/a\.txt, line 3: .*{reason}"):
        open_annotated(root, "yolo")
    source = open_annotated(root, "yolo", on_unreadable="skip")
    assert sum(map(len, boxes_of(source).rows)) == 3
    assert any("line 3" in warning for warning in source.warnings)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3, but there are 2 names"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "numbers 1, 2, not 0 to 1"),
        ("names: 7\ntrain: images/train", "names is int, not a list"),
        ("names: [yes, no]\ntrain: images/train", "the name True is not text: put it in quotes"),
        ("names: [cat, dog]\ntrain: {a: b}", "train: {'a': 'b'} is not a path"),
        (
            "names: [&a [x, x], &b [*a, *a], &c [*b, *b], *c]\ntrain: images/train",
            r"the name \['x', 'x'\] is not text",
        ),
        ("names: [cat, dog]\ntrain: photos", "'photos' is not below"),
        ("names: [cat\ntrain: images/train", r"data\.yaml, line \d: not YAML"),
        ("names: [cat, dog]\ntrain: images/train\nval: images/train", "is in train and in valid"),
    ],
)
def test_s11_errors_of_data_yaml_are_named(description: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        open_annotated(yolo(tmp_path, description=description), "yolo")


def test_s11_images_without_a_label_file_are_named(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    (root / "labels" / "train" / "c.txt").unlink()
    source = open_annotated(root, "yolo")
    assert len(source) == 3
    text = "1 image has no label file and no boxes: images/train/c.png"
    assert text in source.warnings
    for path in (root / "labels").rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no label files: .*labels/\.\.\./NAME\.txt"):
        open_annotated(root, "yolo")


def test_s11_a_recipe_for_boxes_recognises_their_layout(tmp_path: Path) -> None:
    layouts = {"yolo": yolo, "coco": as_cvat, "voc": voc}
    for kind, layout in layouts.items():
        path = layout(tmp_path / kind)
        assert load_recipe("boxes", [f"data.path={path}"]).data.kind == kind
    (row,) = [open_split(load_recipe("boxes", [f"data.path={tmp_path / 'yolo'}"]), "test")]
    assert row.classes == ("cat", "dog")


def test_names_of_classes_are_printed_without_control_characters(tmp_path: Path) -> None:
    from plusx.data.readers.masks import read_classes

    (tmp_path / "classes.csv").write_text("name,value\nb\x1b[31mg,0\nob,1\n")
    (first, second), _ = read_classes(str(tmp_path))
    assert "\x1b" not in first
    assert second == "ob"


def test_a_class_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(root / "images/train/a.png")
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, cat]\n")
    with pytest.raises(UserError, match="the class 'cat' is listed twice"):
        read_yolo(str(root))
