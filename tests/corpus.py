"""A corpus of small data sets and files: every layout that plusx reads, times what befalls them.

Each case says what `plusx info` has to say of it: kind, splits and classes, and a part of the
warning, or a part of the error. `hostile` has the image files.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import hostile
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


# ------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Case:
    """A small data set and what `plusx info` must say of it.

    make: makes it below an empty folder, and gives the path to name
    kind: as which it is read; "" where it is an error
    splits, classes: their numbers of images, and the names
    says: a part of the warning, or of the error
    """

    name: str
    make: Callable[[Path], Path]
    kind: str = ""
    splits: dict[str, int] | None = None
    classes: tuple[str, ...] | None = None
    says: str = ""


Tree = dict[str, "bytes | str | int | np.ndarray"]


def tree(files: Tree, named: str = "") -> Callable[[Path], Path]:
    """Makes files by their names below the folder; a number is a photo of that seed."""

    def make(root: Path) -> Path:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                photo(path, content)
            elif isinstance(content, np.ndarray):
                Image.fromarray(content).save(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content, encoding="utf-8")
        return root / named if named else root

    return make


def photos(folders: Sequence[str], count: int = 4, ending: str = ".png", first: int = 0) -> Tree:
    """So many photos in each of the folders, none of them twice."""
    return {
        f"{folder}/{n}{ending}": first + 100 * i + n
        for i, folder in enumerate(folders)
        for n in range(count)
    }


def changed(
    make: Callable[[Path], Path], change: Callable[[Path], object]
) -> Callable[[Path], Path]:
    """Makes a data set and changes it; `change` may give another path."""

    def both(root: Path) -> Path:
        path = make(root)
        other = change(root)
        return other if isinstance(other, Path) else path

    return both


def appended(name: str, text: str) -> Callable[[Path], None]:
    def append(root: Path) -> None:
        (root / name).write_text((root / name).read_text() + text)

    return append


def copied(source: str, target: str) -> Callable[[Path], None]:
    def copy(root: Path) -> None:
        shutil.copy(root / source, root / target)

    return copy


def scans(*folders: str) -> Callable[[Path], Path]:
    """Volumes and their masks as NIfTI files, in two folders."""

    def make(root: Path) -> Path:
        import nibabel

        for n in range(4):
            values = np.random.default_rng(n).integers(0, 900, (12, 10, 8)).astype(np.int16)
            labels = (values > 450).astype(np.uint8)
            for name, array in zip(folders, (values, labels)):
                (root / name).mkdir(exist_ok=True)
                image = nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]))
                nibabel.save(image, root / name / f"{n}.nii.gz")
        return root

    return make


def rows(
    text: str, count: int = 8, classes: Sequence[str] = ("cat", "dog")
) -> Callable[[Path], Path]:
    """A CSV with the header and the separator of `text`, whose cells are {path}, {label}, {n}."""
    header, _, line = text.partition("\n")

    def make(root: Path) -> Path:
        lines = [header]
        for n in range(count):
            photo(root / "img" / f"{n}.png", n)
            lines.append(line.format(path=f"img/{n}.png", label=classes[n % len(classes)], n=n))
        (root / "photos.csv").write_text("\n".join(lines), encoding="utf-8")
        return root / "photos.csv"

    return make


def encoded_as(encoding: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        path = rows("path,label\n{path},{label}", classes=("Kätzchen", "Hund"))(root)
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        return path

    return make


def coco_json(
    root: Path, name: str, images: str, count: int = 4, first: int = 0, **more: object
) -> Path:
    """A JSON of COCO whose images are in a folder; `more` replaces its lists."""
    listed, boxes_ = [], []
    for n in range(first, first + count):
        photo(root / images / f"{n}.png", n)
        listed.append({"id": n, "file_name": f"{n}.png", "width": 32, "height": 24})
        boxes_.append(
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9], "iscrowd": 0}
        )
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "wall"}]
    content = {"images": listed, "annotations": boxes_, "categories": categories, **more}
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def coco_of(name: str, images: str, named: str = "", **more: object) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        coco_json(root, name, images, **more)  # type: ignore[arg-type]
        return root / named if named else root

    return make


def annotation_of(n: int, *, box: Sequence[float] = (2, 2, 11, 11), label: str = "cell") -> dict:
    left, top, right, bottom = box
    return {
        "id": n,
        "image_id": n,
        "category_id": 1,
        "bbox": [left, top, right - left, bottom - top],
    }


XML = "<annotation><size><width>32</width><height>24</height></size>{objects}</annotation>"
OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>"
    "<ymax>{3}</ymax></bndbox></object>"
)


def xml(*objects: tuple[str, Sequence[float]]) -> str:
    return XML.format(objects="".join(OBJECT.format(*box, name=name) for name, box in objects))


def voc_of(
    files: Mapping[str, str | bytes], count: int = 4, images: str = "JPEGImages"
) -> Callable[[Path], Path]:
    """Pascal VOC's layout with one cell an image, and some files changed or added."""
    box = (3, 3, 20, 20)
    base: Tree = {f"{images}/{n}.png": n for n in range(count)}
    notes: Tree = {f"Annotations/{n}.xml": xml(("cell", box)) for n in range(count)}
    return tree({**base, **notes, **files})


def mask(value: int = 1, *, shape: tuple[int, int] = (24, 32), low: int = 0) -> np.ndarray:
    values = np.full(shape, low, np.uint8)
    values[:, shape[1] // 2 :] = value
    return values


def pairs_of(images: str, masks_: str, count: int = 4, end: str = "", first: int = 0) -> Tree:
    files: Tree = {f"{images}/{n}.png": n for n in range(first, first + count)}
    return {**files, **{f"{masks_}/{n}{end}.png": mask() for n in range(first, first + count)}}


def tar_of(
    files: Mapping[str, bytes], name: str = "set.tar", mode: str = "w"
) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        with tarfile.open(root / name, mode) as archive:  # type: ignore[call-overload]
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return root / name

    return make


def png_of(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return hostile.saved(pixels, "PNG")


WEBDATASET = {
    f"{n:03}.{kind}": data
    for n in range(8)
    for kind, data in (("png", png_of(n)), ("cls", str(n % 2).encode()))
}
TAR_FOLDERS = {f"{('cat', 'dog')[n % 2]}/{n}.png": png_of(n) for n in range(8)}


def in_a_folder(case: hostile.Case) -> Case:
    """An image file in a folder of class folders."""

    def make(root: Path) -> Path:
        folder(root)
        (root / "cat" / case.name).write_bytes(case.data)
        return root

    is_used = case.verdict == "used"
    name = case.name.encode("ascii", "backslashreplace").decode()[:40]
    splits = {"train": 7 if is_used else 6, "validation": 2}
    says = case.reason if case.reason or is_used else "skipped cat/"
    return Case(f"image {name}", make, "folder", splits, TWO, says)


TWO = ("cat", "dog")
FLAT = {"train": 6, "validation": 2}
FOUR = {"train": 3, "validation": 1}
THREE = {"train": 2, "validation": 1}
SIX = {"train": 4, "validation": 2}
CELL, WALLS, BINARY = ("cell",), ("cell", "wall"), ("0", "1")
MASKED = pairs_of("images", "masks")
CELLS = xml(("cell", (3, 3, 20, 20)))
PLACES = "train: images/train\nval: images/val\n"
DESCRIPTION = f"{PLACES}names: [cell]\n"
YOLO: Tree = {f"images/train/{n}.png": n for n in range(4)}
YOLO |= {f"images/val/{n}.png": n for n in range(10, 14)}
YOLO |= {f"labels/train/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(4)}
YOLO |= {f"labels/val/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(10, 14)}
FOUR_OF_FOUR = {"train": 4, "validation": 4}
SETS = [
    # folders of class folders
    Case("folder", folder, "folder", FLAT, TWO),
    Case(
        "folder with splits",
        tree(photos([f"{s}/{c}" for s in ("train", "val", "test") for c in TWO])),
        "folder",
        {"train": 8, "validation": 8, "test": 8},
        TWO,
    ),
    Case(
        "folder with train and test",
        tree(photos([f"{s}/{c}" for s in ("train", "test") for c in TWO])),
        "folder",
        {"train": 6, "validation": 2, "test": 8},
        TWO,
    ),
    Case(
        "T3 Training and Testing",
        tree(photos([f"{s}/{c}" for s in ("Training", "Testing") for c in TWO])),
        "folder",
        {"train": 6, "validation": 2, "test": 8},
        TWO,
    ),
    Case(
        "TRAIN and Valid",
        tree(photos([f"{s}/{c}" for s in ("TRAIN", "Valid") for c in TWO])),
        "folder",
        {"train": 8, "validation": 8},
        TWO,
    ),
    Case(
        "train_set and test_set",
        tree(photos([f"{s}/{c}" for s in ("train_set", "test_set") for c in TWO])),
        "folder",
        {"train": 6, "validation": 2, "test": 8},
        TWO,
    ),
    Case(
        "one folder down",
        tree(photos(["PetImages/Cat", "PetImages/Dog"])),
        "folder",
        FLAT,
        ("Cat", "Dog"),
    ),
    Case(
        "folders in class folders",
        tree(photos(["cat/a", "cat/b", "dog/c"], 3)),
        "folder",
        {"train": 7, "validation": 2},
        TWO,
    ),
    Case(
        "names with blanks and signs",
        tree(photos(["hot dog", "-rf & <b>'\""])),
        "folder",
        FLAT,
        ("-rf & <b>'\"", "hot dog"),
    ),
    Case(
        "names in Unicode",
        tree(photos(["K\u00e4tzchen", "\U0001f436"])),
        "folder",
        FLAT,
        ("K\u00e4tzchen", "\U0001f436"),
    ),
    Case(
        "names in NFD",
        tree(photos(["Ka\u0308tzchen", "Hund"])),
        "folder",
        FLAT,
        ("Hund", "K\u00e4tzchen"),
    ),
    Case(
        "a line break in a name",
        tree(photos(["cat\nx", "dog"])),
        "folder",
        FLAT,
        ("cat\\nx", "dog"),
    ),
    Case(
        "numbers as names",
        tree(photos(["1", "2", "10"], 5)),
        "folder",
        {"train": 12, "validation": 3},
        ("1", "10", "2"),
    ),
    Case(
        "a class of one image",
        tree(photos(TWO) | {"emu/1.png": 77}),
        "folder",
        {"train": 7, "validation": 2},
        ("cat", "dog", "emu"),
        "one sample",
    ),
    Case(
        "files beside class folders",
        tree(photos(TWO) | {"notes.txt": "x", "a.png": 5}),
        "folder",
        FLAT,
        TWO,
        "outside the class folders",
    ),
    Case(
        "hidden files",
        tree(photos(TWO) | {"cat/.DS_Store": "x", "dog/._1.png": "x"}),
        "folder",
        FLAT,
        TWO,
        "hidden",
    ),
    Case(
        "an empty class folder",
        changed(folder, lambda root: (root / "emu").mkdir()),
        "folder",
        FLAT,
        TWO,
        "'emu' has no images",
    ),
    Case(
        "T5 a run inside",
        tree(photos(TWO) | {"runs/a/recipe.toml": "seed = 0", "runs/a/x.png": 9}),
        "folder",
        FLAT,
        TWO,
        "plusx wrote",
    ),
    Case(
        "the same file twice",
        changed(folder, lambda root: os.link(root / "cat/0.png", root / "cat/x.png")),
        "folder",
        FLAT,
        TWO,
        "the same as",
    ),
    Case(
        "a link inside",
        changed(folder, lambda root: os.symlink("0.png", root / "cat/x.png")),
        "folder",
        FLAT,
        TWO,
        "the same as",
    ),
    Case(
        "a link out of the folder",
        changed(folder, lambda root: os.symlink("/etc/hostname", root / "cat/x.png")),
        "folder",
        FLAT,
        TWO,
        "leaves the folder",
    ),
    Case(
        "a link to nothing",
        changed(folder, lambda root: os.symlink("none.png", root / "cat/x.png")),
        "folder",
        FLAT,
        TWO,
        "a link to nothing",
    ),
    Case(
        "a pipe",
        changed(folder, lambda root: os.mkfifo(root / "cat/x.png")),
        "folder",
        FLAT,
        TWO,
        "pipe",
    ),
    Case(
        "a copy in another class",
        changed(folder, copied("cat/0.png", "dog/x.png")),
        "folder",
        {"train": 7, "validation": 2},
        TWO,
        "of different classes",
    ),
    Case(
        "a copy in another split",
        changed(
            tree(photos([f"{s}/{c}" for s in ("train", "val") for c in TWO])),
            copied("train/cat/0.png", "val/cat/x.png"),
        ),
        "folder",
        {"train": 8, "validation": 9},
        TWO,
        "one in train and one in validation",
    ),
    Case(
        "single colour",
        changed(
            folder,
            lambda root: (root / "cat/x.png").write_bytes(
                hostile.saved(hostile.plain((9, 9, 9)), "PNG")
            ),
        ),
        "folder",
        {"train": 7, "validation": 2},
        TWO,
        "single colour",
    ),
    Case(
        "T6 classes that differ in case", tree(photos(["cat", "Cat", "dog"])), says="differ in case"
    ),
    Case("one class", tree(photos(["cat"])), says="one class only"),
    Case("no class folders", tree({f"{n}.png": n for n in range(4)}), says="no class folders"),
    Case("an empty folder", tree({"cat/notes.txt": "x", "dog/notes.txt": "x"}), says="no images"),
    Case("nothing at all", lambda root: root, says="no class folders"),
    Case("a missing folder", lambda root: root / "none", says="none"),
    Case(
        "two validation folders",
        tree(photos([f"{s}/{c}" for s in ("train", "val", "valid") for c in TWO])),
        says="one folder per split",
    ),
    Case(
        "a class that validates alone",
        tree(photos([f"train/{c}" for c in TWO] + [f"val/{c}" for c in (*TWO, "emu")])),
        says="'emu' is not a training class",
    ),
    Case("a text file", tree({"notes.txt": "x"}, "notes.txt"), says="is not data that"),
    Case("an image", tree({"a.png": 1}, "a.png"), says="is one image, not a data set"),
    Case("a run", tree({"recipe.toml": "seed = 0"}), says="is the folder of a run, not data"),
    # CSVs
    Case("csv", rows("path,label\n{path},{label}"), "csv", FLAT, TWO),
    Case("csv with semicolons", rows("path;label\n{path};{label}"), "csv", FLAT, TWO),
    Case("csv with tabs", rows("path\tlabel\n{path}\t{label}"), "csv", FLAT, TWO),
    Case("csv in UTF-16", encoded_as("utf-16"), "csv", FLAT, ("Hund", "K\u00e4tzchen")),
    Case(
        "csv with a byte order mark",
        encoded_as("utf-8-sig"),
        "csv",
        FLAT,
        ("Hund", "K\u00e4tzchen"),
    ),
    Case("csv in cp1252", encoded_as("cp1252"), says="UTF-8"),
    Case("csv with quotes", rows('"path","label"\n"{path}","{label}"'), "csv", FLAT, TWO),
    Case("csv with carriage returns", rows("path,label\r\n{path},{label}\r"), "csv", FLAT, TWO),
    Case("csv with blanks", rows("path , label\n{path} , {label} "), "csv", FLAT, TWO),
    Case(
        "csv with other columns", rows("n,path,label,note\n{n},{path},{label},x"), "csv", FLAT, TWO
    ),
    Case(
        "csv with numbers", rows("path,label\n{path},{label}", classes=BINARY), "csv", FLAT, BINARY
    ),
    Case("csv with groups", rows("path,label,patient\n{path},{label},p{n}"), "csv", FLAT, TWO),
    Case(
        "csv of several labels",
        rows("path,label\n{path},{label}", classes=("tail|ear", "ear")),
        "csv",
        FLAT,
        ("ear", "tail"),
    ),
    Case(
        "csv with splits",
        rows("path,label,split\n{path},{label},train"),
        "csv",
        {"train": 6, "validation": 2},
        TWO,
    ),
    Case(
        "csv with an unknown split",
        rows("path,label,split\n{path},{label},prod"),
        says="split 'prod'",
    ),
    Case(
        "csv with numbers that have gaps",
        rows("path,label\n{path},{label}", classes=("0", "7")),
        says="7",
    ),
    Case(
        "csv with classes that differ in case",
        rows("path,label\n{path},{label}", classes=("cat", "Cat")),
        says="differ in case",
    ),
    Case(
        "csv with a missing file",
        changed(rows("path,label\n{path},{label}"), lambda root: (root / "img/0.png").unlink()),
        "csv",
        {"train": 6, "validation": 1},
        TWO,
        "missing",
    ),
    Case("csv with a row twice", rows("path,label\nimg/0.png,{label}"), says="repeats row 2"),
    Case(
        "csv with a path out of the folder",
        rows("path,label\n../{path},{label}"),
        says="leaves the folder",
    ),
    Case("csv without a label", rows("path,label\n{path},"), says="no label"),
    Case(
        "csv without its columns",
        tree({"x.csv": "a,b\n1,2\n"}, "x.csv"),
        says="tables with path and label",
    ),
    Case("csv without rows", tree({"x.csv": "path,label\n"}, "x.csv"), says="no rows"),
    Case(
        "csv of another length",
        tree({"x.csv": "path,label\na,b,c\n"}, "x.csv"),
        says="3 fields for 2 columns",
    ),
    Case("an empty csv", tree({"x.csv": ""}, "x.csv"), says="x.csv"),
    Case("a csv of zeros", tree({"x.csv": bytes(200)}, "x.csv"), says="x.csv"),
    # tar files and packed files
    Case("tar of class folders", tar_of(TAR_FOLDERS), "shards", FLAT, TWO),
    Case("tar of WebDataset", tar_of(WEBDATASET), "shards", FLAT, BINARY),
    Case(
        "tar by a pattern",
        changed(tar_of(TAR_FOLDERS, "a-000.tar"), lambda root: root / "a-{000..000}.tar"),
        "shards",
        FLAT,
        TWO,
    ),
    Case(
        "tar with splits",
        changed(
            changed(
                tar_of(TAR_FOLDERS, "x-train.tar"),
                tar_of({f"cat/v{n}.png": png_of(50 + n) for n in range(2)}, "x-val.tar"),
            ),
            lambda root: root / "x-*.tar",
        ),
        "shards",
        {"train": 8, "validation": 2},
        TWO,
    ),
    Case("tar without classes", tar_of({"1.png": png_of(1)}), says="no class"),
    Case("tar that is compressed", tar_of(TAR_FOLDERS, "set.tar", "w:gz"), says="set.tar"),
    Case(
        "X5 tar that was cut",
        changed(tar_of(TAR_FOLDERS), lambda root: os.truncate(root / "set.tar", 5000)),
        says="set.tar",
    ),
    Case(
        "tar that names a path above", tar_of({"../x.png": png_of(1)}), says="outside the archive"
    ),
    Case(
        "tar with a damaged image",
        tar_of(TAR_FOLDERS | {"cat/bad.png": png_of(1)[:200]}),
        "shards",
        FLAT,
        TWO,
        "cat/bad.png",
    ),
    Case("an empty tar", tar_of({}), says="no images"),
    Case("packed", packed, "packed", FLAT, TWO),
    Case(
        "a packed file that was cut",
        changed(packed, lambda root: os.truncate(root / "photos.plusx", 3000)),
        says="photos.plusx",
    ),
    # boxes in XML
    Case("voc", voc_of({}), "voc", FOUR, CELL),
    Case(
        "voc with lists",
        voc_of({"ImageSets/Main/train.txt": "0\n1\n2\n", "ImageSets/Main/val.txt": "3\n"}),
        "voc",
        FOUR,
        CELL,
    ),
    Case(
        "voc with trainval and test",
        voc_of({"ImageSets/Main/trainval.txt": "0\n1\n2\n", "ImageSets/Main/test.txt": "3\n"}),
        "voc",
        {"train": 2, "validation": 1, "test": 1},
        CELL,
    ),
    Case(
        "voc in images and annotations",
        tree(
            {f"images/{n}.png": n for n in range(4)}
            | {f"annotations/{n}.xml": CELLS for n in range(4)}
        ),
        "voc",
        FOUR,
        CELL,
    ),
    Case(
        "S3 voc in GB2312",
        voc_of(
            {
                "Annotations/0.xml": (
                    '<?xml version="1.0" encoding="gb2312"?>'
                    + xml(("\u7ec6\u80de", (3, 3, 20, 20)))
                ).encode("gb2312")
            }
        ),
        "voc",
        FOUR,
    ),
    Case(
        "S3 voc in an unknown encoding",
        voc_of({"Annotations/0.xml": b'<?xml version="1.0" encoding="klingon"?>' + CELLS.encode()}),
        "voc",
        THREE,
        CELL,
        "Annotations/0.xml",
    ),
    Case(
        "voc that declares entities",
        voc_of({"Annotations/0.xml": "<!DOCTYPE a [<!ENTITY b 'c'>]>" + CELLS}),
        "voc",
        THREE,
        CELL,
        "Annotations/0.xml",
    ),
    Case(
        "voc with a box without area",
        voc_of({"Annotations/0.xml": xml(("cell", (3, 3, 3, 3)))}),
        "voc",
        FOUR,
        CELL,
        "no area",
    ),
    Case(
        "voc with swapped corners",
        voc_of({"Annotations/0.xml": xml(("cell", (20, 3, 3, 20)))}),
        "voc",
        FOUR,
        CELL,
        "swapped corners",
    ),
    Case(
        "voc with a box outside",
        voc_of({"Annotations/0.xml": xml(("cell", (3, 3, 99, 20)))}),
        "voc",
        FOUR,
        CELL,
        "outside the image",
    ),
    Case(
        "voc with a box that is no number",
        voc_of({"Annotations/0.xml": xml(("cell", ("a", 3, 9, 20)))}),
        "voc",
        FOUR,
        CELL,
        "not finite numbers",
    ),
    Case(
        "voc without an image",
        voc_of({"Annotations/x.xml": xml(("cell", (3, 3, 9, 9)))}),
        "voc",
        FOUR,
        CELL,
        "no image",
    ),
    Case(
        "voc without an annotation",
        voc_of({"JPEGImages/x.png": 9}),
        "voc",
        FOUR,
        CELL,
        "no annotation",
    ),
    Case(
        "voc with a damaged XML",
        voc_of({"Annotations/0.xml": "<annotation><object>"}),
        "voc",
        THREE,
        CELL,
        "Annotations/0.xml",
    ),
    Case(
        "voc with a damaged image",
        voc_of({"JPEGImages/0.png": png_of(1)[:300]}),
        "voc",
        THREE,
        CELL,
        "JPEGImages/0.png",
    ),
    Case(
        "voc of another size",
        voc_of(
            {"Annotations/0.xml": xml(("cell", (3, 3, 9, 9))).replace("<width>32", "<width>99")}
        ),
        "voc",
        THREE,
        CELL,
        "99 x 24",
    ),
    # boxes in JSONs
    Case("coco", coco_of("train.json", "images"), "coco", FOUR, WALLS, "not in"),
    Case(
        "coco with splits",
        changed(
            coco_of("train.json", "train"), lambda root: coco_json(root, "val.json", "val", 2, 10)
        ),
        "coco",
        SIX,
        WALLS,
    ),
    Case(
        "coco in annotations",
        changed(
            coco_of("annotations/instances_train2017.json", "train2017"),
            lambda root: coco_json(root, "annotations/instances_val2017.json", "val2017", 2, 10),
        ),
        "coco",
        SIX,
        WALLS,
    ),
    Case(
        "S2 coco of CVAT",
        coco_of("annotations/instances_default.json", "images"),
        "coco",
        FOUR,
        WALLS,
    ),
    Case(
        "S2 coco of Roboflow",
        changed(
            coco_of("train/_annotations.coco.json", "train"),
            lambda root: coco_json(root, "valid/_annotations.coco.json", "valid", 2, 10),
        ),
        "coco",
        SIX,
        WALLS,
    ),
    Case(
        "S2 coco as one JSON",
        coco_of("labels/boxes.json", "images", "labels/boxes.json"),
        "coco",
        FOUR,
        WALLS,
    ),
    Case(
        "S1 coco with fractions",
        coco_of(
            "train.json",
            "images",
            annotations=[annotation_of(n, box=(0.1, 0.1, 0.5, 0.5)) for n in range(4)],
        ),
        says="pixel",
    ),
    Case(
        "coco with a dangling annotation",
        coco_of("train.json", "images", annotations=[annotation_of(n) for n in (0, 1, 2, 3, 99)]),
        "coco",
        FOUR,
        WALLS,
        "99",
    ),
    Case(
        "coco with an image that is missing",
        changed(coco_of("train.json", "images"), lambda root: (root / "images/0.png").unlink()),
        "coco",
        THREE,
        WALLS,
        "missing",
    ),
    Case(
        "coco with crowds alone",
        coco_of(
            "train.json",
            "images",
            annotations=[annotation_of(n) | {"iscrowd": 1} for n in range(4)],
        ),
        kind="coco",
        says="marked as crowd",
    ),
    *(
        Case(
            f"coco in {encoding}",
            changed(
                coco_of("train.json", "images"),
                lambda root, encoding=encoding: (root / "train.json").write_bytes(
                    (root / "train.json").read_text().encode(encoding)
                ),
            ),
            "coco",
            FOUR,
            WALLS,
        )
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le")
    ),
    Case(
        "coco with Roboflow's supercategory",
        coco_of(
            "train.json",
            "images",
            categories=[
                {"id": 0, "name": "cells", "supercategory": "none"},
                {"id": 1, "name": "cell", "supercategory": "cells"},
                {"id": 2, "name": "wall", "supercategory": "cells"},
            ],
        ),
        "coco",
        FOUR,
        WALLS,
        "'cells' is not a class",
    ),
    Case(
        "coco with a category without a name",
        coco_of("train.json", "images", categories=[{"id": 1}]),
        says="categories, item 1: name is missing",
    ),
    Case(
        "coco with an annotation that is a number",
        coco_of("train.json", "images", annotations=[*map(annotation_of, range(4)), 7]),
        "coco",
        FOUR,
        WALLS,
        "annotation 5: it is 7, not a JSON object",
    ),
    Case(
        "coco one folder down",
        lambda root: coco_json(root / "export", "train.json", "images").parent,
        says="contains data sets: export (coco)",
    ),
    Case(
        "coco without boxes",
        coco_of("train.json", "images", annotations=[]),
        kind="coco",
        splits={"validation": 1},
        says="nothing to learn",
    ),
    Case(
        "coco without categories", coco_of("train.json", "images", categories=[]), says="categories"
    ),
    Case(
        "coco with a category twice",
        coco_of(
            "train.json", "images", categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
        ),
        says="category 1",
    ),
    Case(
        "a JSON that was cut",
        changed(
            coco_of("train.json", "images"), lambda root: os.truncate(root / "train.json", 300)
        ),
        says="train.json",
    ),
    Case("a JSON of another kind", tree({"x.json": '{"a": 1}'}, "x.json"), says="is not data that"),
    *(
        Case(
            f"voc with {name}",
            voc_of({"Annotations/0.xml": CELLS.replace(old, new)}),
            "voc",
            FOUR,
            CELL,
        )
        for name, old, new in (
            ("a namespace", "<annotation>", '<annotation xmlns="http://example.org/v">'),
            ("another root", "annotation>", "doc>"),
            ("other capitals", "object>", "Object>"),
        )
    ),
    Case(
        "voc with XML of CVAT",
        voc_of({"Annotations/0.xml": "<annotations><image><box/></image></annotations>"}),
        "voc",
        THREE,
        CELL,
        "its root is <annotations>",
    ),
    Case(
        "voc with a box outside of any object",
        voc_of({"Annotations/0.xml": "<annotation><item><bndbox/></item></annotation>"}),
        "voc",
        THREE,
        CELL,
        "a <bndbox> outside of any <object>",
    ),
    Case(
        "voc of difficult objects alone",
        voc_of(
            {
                f"Annotations/{n}.xml": CELLS.replace(
                    "<bndbox>", "<difficult>1</difficult><bndbox>"
                )
                for n in range(4)
            }
        ),
        kind="voc",
        says="difficult (in VOC)",
    ),
    Case(
        "classes that differ in an invisible character",
        tree(photos(["fish", "fish\u200b"])),
        says="invisible characters",
    ),
    Case(
        "cifar-10's folder",
        tree({"cifar-10-batches-bin/test_batch.bin": b"x"}, "cifar-10-batches-bin"),
        says="`plusx info cifar10`",
    ),
    # boxes in text files
    Case(
        "yolo",
        tree(
            {f"images/train/{n}.png": n for n in range(4)}
            | {f"labels/train/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(4)}
            | {f"images/val/{n}.png": 10 + n for n in range(2)}
            | {f"labels/val/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(2)}
            | {"data.yaml": "train: images/train\nval: images/val\nnames: [cell]\n"}
        ),
        "yolo",
        SIX,
        CELL,
    ),
    Case(
        "yolo as Roboflow has it",
        tree(
            {
                f"{s}/images/{n}.png": (s == "valid") * 50 + n
                for s in ("train", "valid")
                for n in range(4)
            }
            | {
                f"{s}/labels/{n}.txt": "0 .5 .5 .2 .2\n"
                for s in ("train", "valid")
                for n in range(4)
            }
            | {"data.yaml": "train: ../train/images\nval: ../valid/images\nnames: ['cell']\n"}
        ),
        "yolo",
        {"train": 4, "validation": 4},
        CELL,
    ),
    Case(
        "yolo without data.yaml",
        tree(
            {f"images/{n}.png": n for n in range(4)}
            | {f"labels/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(4)}
            | {"classes.txt": "cell\n"}
        ),
        "yolo",
        FOUR,
        CELL,
    ),
    Case(
        "yolo with a class too many",
        tree(
            {f"images/train/{n}.png": n for n in range(4)}
            | {f"labels/train/{n}.txt": "0 .5 .5 .2 .2\n" for n in range(3)}
            | {
                "labels/train/3.txt": "7 .5 .5 .2 .2\n",
                "data.yaml": "train: images/train\nval: images/train\nnames: [cell]\n",
            }
        ),
        says="",
    ),
    *(
        Case(
            f"yolo with a description in {encoding}",
            tree(YOLO | {"data.yaml": DESCRIPTION.encode(encoding)}),
            "yolo",
            FOUR_OF_FOUR,
            CELL,
        )
        for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")
    ),
    Case(
        "yolo with a description that merges keys",
        tree(YOLO | {"data.yaml": f"all: &all\n  names: [cell]\n<<: *all\n{PLACES}"}),
        "yolo",
        FOUR_OF_FOUR,
        CELL,
    ),
    Case(
        "yolo with a tab behind a key",
        tree(YOLO | {"data.yaml": f"names:\t[cell]\n{PLACES}"}),
        "yolo",
        FOUR_OF_FOUR,
        CELL,
    ),
    Case(
        "yolo with a description without names",
        tree(YOLO | {"data.yaml": PLACES}),
        "yolo",
        FOUR_OF_FOUR,
        ("0",),
        "data.yaml has no class names",
    ),
    Case(
        "yolo with a description without keys",
        tree(YOLO | {"data.yaml": "classes: [cell]\n"}),
        says="data.yaml has none of the keys",
    ),
    Case(
        "yolo beside another yaml",
        tree(YOLO | {"data.yaml": DESCRIPTION, "hyp.yaml": "lr0: 0.1\n"}),
        "yolo",
        FOUR_OF_FOUR,
        CELL,
        "hyp.yaml is not read",
    ),
    # boxes in CSVs
    Case("boxes", boxes, "boxes", FOUR, CELL),
    Case(
        "boxes with splits",
        rows("path,left,top,right,bottom,label,split\n{path},2,2,9,9,{label},train"),
        "boxes",
        {"train": 6, "validation": 2},
        TWO,
    ),
    Case(
        "boxes that are no numbers",
        changed(boxes, appended("boxes.csv", "\n0.png,a,2,9,9,cell")),
        "boxes",
        FOUR,
        CELL,
        "'a' is not a number",
    ),
    Case(
        "boxes of a missing image",
        changed(boxes, appended("boxes.csv", "\nx.png,2,2,9,9,cell")),
        "boxes",
        FOUR,
        CELL,
        "x.png",
    ),
    Case(
        "boxes that are there twice",
        changed(boxes, appended("boxes.csv", "\n0.png,2,2,11,11,cell")),
        "boxes",
        FOUR,
        CELL,
        "row 2",
    ),
    Case(
        "S1 boxes as fractions",
        rows("path,left,top,right,bottom,label\n{path},.1,.1,.5,.5,{label}"),
        says="pixel",
    ),
    # masks
    Case("masks", tree(MASKED), "masks", FOUR, BINARY),
    Case(
        "masks beside train",
        tree({**pairs_of("train", "trainannot"), **pairs_of("val", "valannot", 2, first=10)}),
        "masks",
        SIX,
        BINARY,
    ),
    Case(
        "masks in split folders",
        tree(
            {
                **pairs_of("train/images", "train/masks"),
                **pairs_of("val/images", "val/masks", 2, first=10),
            }
        ),
        "masks",
        SIX,
        BINARY,
    ),
    Case(
        "masks with an ending",
        tree(pairs_of("images", "masks", end="_mask")),
        "masks",
        FOUR,
        BINARY,
    ),
    Case(
        "masks with names",
        tree(MASKED | {"classes.csv": "name,value\nroad,0\nsky,1\n"}),
        "masks",
        FOUR,
        ("road", "sky"),
    ),
    Case(
        "masks of VOC",
        tree(
            pairs_of("JPEGImages", "SegmentationClass")
            | {
                "ImageSets/Segmentation/train.txt": "0\n1\n2\n",
                "ImageSets/Segmentation/val.txt": "3\n",
            }
        ),
        "masks",
        FOUR,
        BINARY,
    ),
    Case(
        "masks of another size",
        tree(MASKED | {"masks/0.png": mask(shape=(9, 9))}),
        "masks",
        THREE,
        BINARY,
        "9 x 9",
    ),
    Case(
        "masks with an unknown value",
        tree(MASKED | {"masks/0.png": mask(9), "classes.csv": "name,value\nroad,0\nsky,1\n"}),
        "masks",
        THREE,
        ("road", "sky"),
        "masks/0.png",
    ),
    Case(
        "masks of one value",
        tree(MASKED | {f"masks/{n}.png": mask(0) for n in range(4)}),
        says="value",
    ),
    Case(
        "masks without an image",
        tree(MASKED | {"masks/x.png": mask()}),
        "masks",
        FOUR,
        BINARY,
        "no image",
    ),
    Case(
        "an image without a mask",
        tree(MASKED | {"images/x.png": 9}),
        "masks",
        FOUR,
        BINARY,
        "no mask",
    ),
    Case("masks as JPEGs", tree(MASKED | {"masks/0.jpg": 3}), says="masks"),
    Case(
        "a damaged mask",
        tree(MASKED | {"masks/0.png": png_of(1)[:100]}),
        "masks",
        THREE,
        BINARY,
        "masks/0.png",
    ),
    # people
    Case(
        "people in splits",
        tree(photos([f"train/p{n}" for n in range(6)] + [f"test/q{n}" for n in range(3)], 2)),
        "people",
        {"train": 8, "validation": 4, "test": 6},
    ),
    Case("people and classes", faces, "folder", {"train": 10, "validation": 2}),
    Case(
        "a person in two splits",
        tree(photos(["train/a", "train/b", "train/c", "train/d", "test/a", "test/e"], 2)),
        says="'e' is not a training class",
    ),
    Case(
        "csv with a patient in two splits",
        changed(
            rows("path,label,patient,split\n{path},{label},p,train"),
            appended("photos.csv", "\nx.png,cat,p,test"),
        ),
        says="the patient 'p' is in test",
    ),
    # volumes
    Case("volumes", scans("images", "labels"), "volumes", FOUR, BINARY),
    Case("volumes of the decathlon", scans("imagesTr", "labelsTr"), "volumes", FOUR, BINARY),
    Case(
        "volumes without a mask",
        changed(scans("images", "labels"), lambda root: (root / "labels/0.nii.gz").unlink()),
        "volumes",
        FOUR,
        BINARY,
        "no mask",
    ),
    Case(
        "a volume that was cut",
        changed(scans("images", "labels"), lambda root: os.truncate(root / "images/0.nii.gz", 90)),
        "volumes",
        FOUR,
        BINARY,
        "0.nii.gz",
    ),
    # two ways to read
    Case(
        "voc and coco", changed(voc_of({}), coco_of("train.json", "images")), "voc", FOUR, CELL, ""
    ),
]

CORPUS = [*SETS, *map(in_a_folder, hostile.corpus())]
