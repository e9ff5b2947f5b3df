"""What every kind of data goes through on its way from a file to a prediction, as numbers.

`python tests/golden_walk.py` writes golden/walk.json anew. Small data sets of every kind are made,
a recipe for each of them trains three steps, and the first batches, the weights and the rows that
`predict` gives are recorded: shapes and integers exactly, other numbers to be compared at 1e-4.
"""

import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plusx import run as runs
from plusx.data.batch import Batch
from plusx.data.loader import Loader
from plusx.data.readers.packing import pack
from plusx.recipe import Recipe, parse_recipe
from plusx.run import build
from plusx.weights import read_weights
from volume_files import write_nifti


GOLDEN = Path(__file__).parent / "golden" / "walk.json"
PROBES = 16
NET = '[net]\nbase = "resnet20"\n{net}\n'
TRAINING = """
seed = 5
steps = 3
batch_size = 4
{net}
{rest}
[optim]
kind = "sgd"
lr = 0.01
[schedule]
kind = "constant"
[device]
kind = "cpu"
threads = 1
precision = "float32"
"""
CLASSIFY = ""
UNET = '[head]\nkind = "unet"\nwidth = 4\n[task]\nkind = "segment"\n'
FCOS = (
    '[head]\nkind = "fcos"\nwidth = 8\ndepth = 1\nfinest = 2\nlevels = 2\n[task]\nkind = "detect"\n'
)
MASKS = (
    '[head]\nkind = "mask-rcnn"\nwidth = 8\nanchors = [8, 16]\nregions = 8\n'
    '[task]\nkind = "detect"\n'
)
# name: fields of [net], head and task, and [data]; PATH stands for the folder of all data
CASES: dict[str, tuple[str, str, str]] = {
    "digits": ("size = 8", CLASSIFY, 'kind = "digits"\naugment = "pad1 crop flip cutout2"'),
    "digits-resized": ("size = 12", CLASSIFY, 'kind = "digits"\nsize = 12\naugment = "rotate10"'),
    "digits-balanced": (
        "size = 8",
        CLASSIFY,
        'kind = "digits"\naugment = "altflip erase.5"\nsampler = "balanced"',
    ),
    "made-bands": (
        "size = 32",
        CLASSIFY,
        'kind = "bands"\naugment = "pad2 crop vflip"\nbands = [1, 8, 3]\nper_class = 20',
    ),
    "folder": ("size = 24", CLASSIFY, 'kind = "folder"\npath = "PATH/photos"\nsize = 24'),
    "folder-crops": (
        "size = 24",
        CLASSIFY,
        (
            'kind = "folder"\npath = "PATH/photos"\nsize = 24\nvalidation = 4\n'
            'augment = "resizedcrop flip jitter.4 erase.25"'
        ),
    ),
    "folder-words": (
        "size = 20",
        CLASSIFY,
        (
            'kind = "folder"\npath = "PATH/photos"\nsize = 20\nchannels = 1\n'
            'augment = "resize28 rotate15 centercrop24 crop vflip grayscale.5 randaugment"'
        ),
    ),
    "folder-zoom": (
        "size = 24",
        CLASSIFY,
        'kind = "folder"\npath = "PATH/photos"\nsize = 24\naugment = "zoom1.5 trivialaugment"',
    ),
    "csv": ("size = 24", CLASSIFY, 'kind = "csv"\npath = "PATH/photos.csv"\nsize = 24'),
    "csv-labels": (
        "size = 24",
        '[task]\nkind = "classify"\nmultilabel = true\n',
        'kind = "csv"\npath = "PATH/labels.csv"\nsize = 24\naugment = "flip"',
    ),
    "packed": (
        "size = 24",
        CLASSIFY,
        'kind = "packed"\npath = "PATH/photos.plusx"\nsize = 24\naugment = "resizedcrop flip"',
    ),
    "packed-words": (
        "size = 24",
        CLASSIFY,
        'kind = "packed"\npath = "PATH/photos.plusx"\nsize = 24\naugment = "resizedcrop jitter.2"',
    ),
    "shards": (
        "size = 24",
        CLASSIFY,
        'kind = "shards"\npath = "PATH/photos-train-{000..001}.tar"\nsize = 24\naugment = "flip"',
    ),
    "bands": (
        "size = 16",
        CLASSIFY,
        (
            'kind = "folder"\npath = "PATH/satellite"\nsize = 16\nchannels = 5\nrange = [0, 4000]\n'
            'augment = "pad2 crop flip"'
        ),
    ),
    "people": (
        "size = 16",
        '[task]\nkind = "embed"\nloss = "arcface"\nwidth = 6\n',
        (
            'kind = "people"\npath = "PATH/people"\nsize = [16, 16]\nvalidation = 2\n'
            'augment = "zoom1.15 flip"\nsampler = "pk"\nsamples_per_class = 2'
        ),
    ),
    "voc": (
        "",
        FCOS,
        'kind = "voc"\npath = "PATH/voc"\nsize = [32, 40]\naugment = "zoom1.3 flip jitter.3"',
    ),
    "coco": (
        "",
        MASKS,
        'kind = "coco"\npath = "PATH/coco"\nsize = [32, 32]\naugment = "flip rotate10 rot90"',
    ),
    "boxes": (
        "",
        FCOS,
        (
            'kind = "boxes"\npath = "PATH/boxes.csv"\nclasses = ["bar", "disc"]\n'
            'augment = "crop24"\nvalidation = 4\nsampler = "balanced"'
        ),
    ),
    "masks": (
        "",
        UNET,
        (
            'kind = "masks"\npath = "PATH/masks"\nsize = [24, 32]\nignore = [9]\n'
            'augment = "resizedcrop flip rotate20"'
        ),
    ),
    "masks-parts": (
        "",
        FCOS,
        (
            'kind = "masks"\npath = "PATH/masks"\nsize = [32, 32]\nignore = [9]\n'
            'classes = ["ground", "disc", "bar"]\ncomponents = ["disc", "bar"]\nmin_area = 10'
        ),
    ),
    "cells": ("", FCOS, 'kind = "cells"\nsize = [32, 32]\naugment = "crop24 vflip"\ntrain = 12'),
    "volumes": (
        "ndim = 3",
        UNET,
        (
            'kind = "volumes"\npath = "PATH/volumes"\nclasses = ["background", "ball"]\n'
            "range = [-200, 300]\nwindow = [-160, 240]\npatch = [4, 8, 8]\npatches = 3\n"
            'validation = 1\naugment = "flip dflip rot90 brightness.2 noise.1"'
        ),
    ),
    "ellipsoids": (
        "ndim = 3",
        UNET,
        'kind = "ellipsoids"\npatch = [4, 8, 8]\ntrain = 6\naugment = "vflip"',
    ),
}
# those of which predictions are recorded, and for which files
PREDICTED = {
    "folder": "photos/disc",
    "csv-labels": "photos/disc",
    "bands": "satellite/low",
    "people": "people/p0",
    "voc": "voc/JPEGImages",
    "coco": "coco/images",
    "masks": "masks/images",
    "volumes": "volumes/images",
}


def make_data(root: Path) -> None:
    """Small sets of every kind; images are lossless, of mixed shapes."""
    shapes = [(30, 40), (36, 28), (28, 28), (33, 45)]
    rows, labels = ["path,label"], ["path,label"]
    boxes = ["path,left,top,right,bottom,label"]
    coco: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "bar"}],
    }
    for number in range(16):
        kind = ("disc", "bar")[number % 2]
        pixels, mask, box = _picture(number, shapes[number // 2 % 4], number % 2)
        path = root / "photos" / kind / f"{number:02}.png"
        _save(pixels, path)
        rows.append(f"photos/{kind}/{number:02}.png,{kind}")
        labels.append(f"photos/{kind}/{number:02}.png,{kind}{'|dark' if number % 3 else ''}")
        boxes.append(f"photos/{kind}/{number:02}.png,{','.join(map(str, box))},{kind}")
        name = f"{number:02}.png"
        _save(pixels, root / "voc" / "JPEGImages" / name)
        _save(pixels, root / "coco" / "images" / name)
        _save(pixels, root / "masks" / "images" / name)
        _save(
            np.where(mask & (number > 13), 9, mask * (1 + number % 2)), root / "masks/masks" / name
        )
        _voc(root / "voc" / "Annotations" / f"{number:02}.xml", name, pixels, kind, box)
        left, top, right, bottom = box
        image = {"id": number, "file_name": name, "height": len(pixels), "width": len(pixels[0])}
        coco["images"].append(image)
        coco["annotations"].append(
            {
                "id": 100 + number,
                "image_id": number,
                "category_id": 7 if number % 2 else 3,
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    (root / "photos.csv").write_text("\n".join(rows))
    (root / "labels.csv").write_text("\n".join(labels))
    (root / "boxes.csv").write_text("\n".join(boxes))
    half = {"train": range(12), "val": range(12, 16)}
    for split, numbers in half.items():
        content = {
            **coco,
            "images": [entry for entry in coco["images"] if entry["id"] in numbers],
            "annotations": [entry for entry in coco["annotations"] if entry["image_id"] in numbers],
        }
        (root / "coco" / f"{split}.json").write_text(json.dumps(content))
    for person in range(6):
        for number in range(3):
            pixels, _, _ = _picture(20 * person + number, (20, 22), person % 2)
            _save(pixels, root / "people" / f"p{person}" / f"{number}.png")
    for shard in range(2):
        with tarfile.open(root / f"photos-train-{shard:03}.tar", "w") as file:
            for number in range(8):
                pixels, _, _ = _picture(8 * shard + number, shapes[number % 4], number % 2)
                _add(file, f"{shard}{number}.png", _png(pixels))
                _add(file, f"{shard}{number}.cls", f"{number % 2}".encode())
    pack(root / "photos", root / "photos.plusx", size=24)
    _satellite(root / "satellite")
    for number in range(4):
        draw = np.random.default_rng(number)
        grid = np.stack(np.meshgrid(*map(np.arange, (14, 12, 8)), indexing="ij"), -1)
        ball = ((grid - draw.integers(4, 7, 3)) ** 2).sum(-1) < 8
        values = (80 * ball + draw.normal(0, 30, ball.shape)).astype(np.int16)
        values[0, 0, 0], values[-1, -1, -1] = -190, 290
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        write_nifti(root / "volumes" / "images" / f"v{number}.nii.gz", values, affine)
        write_nifti(
            root / "volumes" / "labels" / f"v{number}.nii.gz", ball.astype(np.uint8), affine
        )


def _picture(number: int, size: tuple[int, int], bar: int) -> tuple[Any, Any, list[int]]:
    """Pixels, mask and box of one thing in noise."""
    draw = np.random.default_rng(number)
    height, width = size
    pixels = draw.integers(40, 120, (height, width, 3))
    tall, wide = ((6, 14), (10, 10))[1 - bar]
    top, left = int(draw.integers(2, height - tall - 2)), int(draw.integers(2, width - wide - 2))
    mask = np.zeros(size, np.uint8)
    mask[top : top + tall, left : left + wide] = 1
    pixels[mask == 1] += draw.integers(60, 130, 3)
    return pixels.astype(np.uint8), mask, [left, top, left + wide, top + tall]


def _save(pixels: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(pixels))


def _png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, BytesIO(content))


def _voc(path: Path, name: str, pixels: Any, kind: str, box: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box)
    inner = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    path.write_text(
        f"<annotation><filename>{name}</filename><size><width>{len(pixels[0])}</width>"
        f"<height>{len(pixels)}</height></size><object><name>{kind}</name>"
        f"<bndbox>{inner}</bndbox></object></annotation>"
    )


def _satellite(root: Path) -> None:
    import tifffile

    for number in range(12):
        draw = np.random.default_rng(number)
        values = draw.integers(100, 3900, (5, 18, 20)).astype(np.uint16)
        path = root / ("low", "high")[number % 2] / f"{number:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, values, photometric="minisblack")


def recipe_of(name: str, root: Path) -> Recipe:
    net, task, data = CASES[name]
    data = data.replace("PATH", str(root))
    text = TRAINING.format(net=NET.format(net=net), rest=f"{task}\n[data]\n{data}\n")
    return parse_recipe(text)


def first_batches(recipe: Recipe) -> Iterator[Batch]:
    """Three batches that train, and the first one that validates."""
    sets = build.open_sets(recipe)
    assert sets.validation is not None
    for source, split, count in ((sets.train, "train", 3), (sets.validation, "validation", 1)):
        size = 4 if split == "train" else build.evaluation_batch_size(source, 4)
        loader = Loader(
            source,
            split=split,
            augment=recipe.data.augment,
            batch_size=size,
            seed=recipe.seed,
            sampler=recipe.data.sampler,
            samples_per_class=getattr(recipe.data, "samples_per_class", 1),
        )
        with loader:
            yield from (batch for batch, _ in zip(loader.epoch(0), range(count)))


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    targets = batch.targets
    if targets is not None and targets.ndim == 3 and targets.is_floating_point():
        scales = batch.extras["scale"][:, None, None].expand(-1, targets.shape[1], 1)
        targets = torch.cat([targets, scales], 2)
    masks = batch.extras.get("masks")
    tensors = {"inputs": batch.inputs, "targets": targets, "masks": masks}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def digest(tensor: Tensor) -> dict[str, Any]:
    """Shape, kind, mean, deviation and a few evenly spaced values."""
    flat = tensor.detach().double().reshape(-1)
    places = np.unique(np.linspace(0, len(flat) - 1, PROBES).astype(int))
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "mean": round(float(flat.mean()), 6),
        "std": round(float(flat.std(unbiased=False)), 6),
        "values": [round(value, 6) for value in flat[places].tolist()],
    }


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What of predictions has to stay: all of the first rows but their paths, of boxes the best."""
    rows = []
    for row in result["predictions"][:3]:
        row = {key: value for key, value in row.items() if key not in ("path", "ground_truth")}
        if "boxes" in row:
            named = ("label", "score", "box")
            row["boxes"] = [{name: box[name] for name in named} for box in row["boxes"][:2]]
        rows.append(row)
    return json.loads(json.dumps(rows))


def batches_of(name: str, root: Path) -> list[dict[str, Any]]:
    """What is recorded of a recipe's batches."""
    return [
        {key: digest(tensor) for key, tensor in tensors_of(batch).items()}
        for batch in first_batches(recipe_of(name, root))
    ]


def run_of(name: str, root: Path) -> dict[str, Any]:
    """What is recorded of three steps of training, and of predictions with what they made."""
    out = root / "runs" / name
    runs.train(recipe_of(name, root), out, progress=False)
    weights = list(read_weights(out / "model.safetensors").tensors.items())
    return {
        "weights": {key: digest(value) for key, value in weights[::7] if value.is_floating_point()},
        "rows": rows_of(runs.predict(runs.load_run(out), [root / PREDICTED[name]])),
    }


def walk(name: str, root: Path) -> dict[str, Any]:
    run = run_of(name, root) if name in PREDICTED else {}
    return {"batches": batches_of(name, root), **run}


def main() -> None:
    os.environ["PLUSX_CACHE"] = tempfile.mkdtemp()
    root = Path(tempfile.mkdtemp())
    make_data(root)
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(CASES)
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    recorded = {**recorded, **{name: walk(name, root) for name in chosen}}
    lines = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(recorded[k])}" for k in CASES if k in recorded
    )
    GOLDEN.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
