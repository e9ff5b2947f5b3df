"""Small data sets in every layout that plusx reads."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from plusx.data.readers.packing import pack


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


def faces(root: Path) -> Path:
    for number in range(12):
        photo(root / f"person{number // 2}" / f"{number}.png", number)
    return root
