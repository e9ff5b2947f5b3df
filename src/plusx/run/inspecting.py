"""The summary of a data set for `plusx info PATH`, and its page with examples."""

import io
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plusx import store
from plusx.data.annotations import Masks, Texts
from plusx.data.dataset import Dataset
from plusx.data.image_file import UnreadableInput
from plusx.data.inspection import (
    READ_VOLUMES,
    Inspection,
    Volumes,
    class_of,
    displayed_image,
    inspect_data,
    summary,
)
from plusx.data.modality import AudioModality
from plusx.data.readers.layouts import LAYOUTS, choose_kind, recipe_for
from plusx.data.readers.scans import read_scan, stem_of
from plusx.data.readers.verdicts import Skipped
from plusx.data.sets.download import located
from plusx.data.summaries import content_stamp, write_summary
from plusx.data.text_items import TextItems
from plusx.errors import UserError
from plusx.report.inspection_page import inspection_page
from plusx.run import drawing
from plusx.run.chosen_examples import spread
from plusx.run.sound_examples import spectrogram, spectrogram_pixels, with_seconds


PAGE = "info.html"
EXAMPLES = 24
_CHARACTERS = 300  # of a text
_SIDE = 480  # pixels of the longer side of an image
_QUALITY = 85  # of JPEGs
_MAX_LABELLED = 8  # more boxes in an image are drawn without class names
_HOUNSFIELD = (-1024, 3071)  # range of computed tomography
_AIR = -500  # lower values are air, so the volume is computed tomography
_NAMED = {
    "digits": "digits-resnet20",
    "fashion-mnist": "fashion-resnet20",
    "cifar10": "cifar10-resnet20-quick",
    "cifar100": "cifar10-resnet20-quick data.kind=cifar100",
    "svhn": "cifar10-resnet20-quick data.kind=svhn data.augment=",
    "svhn-extra": "cifar10-resnet20-quick data.kind=svhn-extra data.augment=",
    "mosaics": "mosaic-labels",
    "bands": "bands-satellite",
}


def inspect(data: str, out: Path | None = None, kind: str | None = None) -> dict[str, Any]:
    """Return the summary of a data set with a training command; with `out`, write the page.

    out: a file, or a folder for info.html
    Raises UserError if there is no such data, or `out` cannot be written.
    """
    file = None
    if out is not None:
        file = out if out.suffix.lower() in (".html", ".htm") else out / PAGE
        store.refuse_as_file(file)
    stamp = content_stamp(data)
    inspection = inspect_data(data, kind)
    values = {
        **summary(inspection),
        "command": train_command(data, inspection),
        "other_commands": other_commands(data, inspection),
    }
    write_summary(data, kind, stamp, values)
    if file is not None:
        store.make_folder(file.parent)
        pictures, texts = list(examples(inspection)), text_examples(inspection)
        page = inspection_page(values, pictures, texts, _colours(inspection))
        store.write_text(file, page)
        values["page"] = str(file)
    return values


def train_command(data: str, inspection: Inspection) -> str:
    """Return the command that trains on the data; "" if there is none."""
    if inspection.volumes is None and "train" not in inspection.datasets:
        return ""
    if inspection.kind not in LAYOUTS:
        return f"plusx train {_NAMED[inspection.kind]}" if inspection.kind in _NAMED else ""
    annotation = LAYOUTS[inspection.kind].annotation
    recipe = recipe_for(inspection.kind)
    overrides = [f"data.path={data}"]
    try:
        chosen = choose_kind(data, "", [annotation], "")
    except UserError:
        chosen = ""
    if chosen != inspection.kind:
        overrides.append(f"data.kind={inspection.kind}")
    several = any(d.multilabel and d.annotations is None for d in inspection.datasets.values())
    if several:
        overrides.append("task.multilabel=true")
    modality = next((d.modality for d in inspection.datasets.values()), None)
    if modality is not None and (values := modality.data_fields()):
        recipe = "bands-satellite"
        overrides += [f"data.{name}={value}" for name, value in values.items()]
    if inspection.kind in LAYOUTS:
        fields = LAYOUTS[inspection.kind].fields(os.fspath(located(data)))
        overrides += [f"data.{name}={value}" for name, value in fields.items()]
    if inspection.volumes is not None:
        overrides += _volume_overrides(inspection.volumes)
    if any(isinstance(text, Skipped) for text in inspection.left_out):
        overrides.append("data.on_unreadable=skip")
    return shlex.join(["plusx", "train", recipe, *overrides])


def other_commands(data: str, inspection: Inspection) -> dict[str, str]:
    """Return the commands that train on the data as another kind, for which there is a recipe."""
    if inspection.kind not in LAYOUTS:
        return {}
    usual = recipe_for(inspection.kind)
    return {
        kind: shlex.join(["plusx", "train", recipe_for(kind), f"data.path={data}"])
        for kind in inspection.other_kinds
        if recipe_for(kind) != usual
    }


def _volume_overrides(volumes: Volumes) -> list[str]:
    """Return overrides with names for the mask values, and the range of voxel values."""
    numbers = range(max((*volumes.mask_values, 1)) + 1)
    names = ",".join(f'"{name}"' for name in volumes.class_names or numbers)
    low, high = volumes.low, volumes.high
    if low <= _AIR:
        low, high = min(low, _HOUNSFIELD[0]), max(high, _HOUNSFIELD[1])
    else:  # only some volumes were read, and others may have values beyond
        margin = (high - low) / 4
        low, high = low - margin if low < 0 else 0, high + margin
    low, high = math.floor(low), math.ceil(high)
    return [f"data.classes=[{names}]", f"data.range=[{low},{high}]"]


def examples(inspection: Inspection) -> Iterator[tuple[str, bytes]]:
    """Yield captions and JPEGs of a few images of each class, with boxes and masks."""
    if inspection.volumes is not None:
        yield from _slices(inspection.volumes)
        return
    dataset = inspection.datasets.get("train") or next(iter(inspection.datasets.values()))
    if not (dataset.modality.is_image or isinstance(dataset.modality, AudioModality)):
        return
    for index in _spread(dataset):
        try:
            pixels = _drawn(dataset, index)
        except (UnreadableInput, OSError):  # changed since the inspection
            continue
        label = _label(dataset, index)
        name = dataset.describe(index)
        yield f"{name}: {label}" if label else name, _jpeg(pixels)


def text_examples(inspection: Inspection) -> list[list[tuple[str, str]]]:
    """Return a few texts of each class with its name, or sentences with their translations."""
    dataset = inspection.datasets.get("train") or next(iter(inspection.datasets.values()), None)
    if dataset is None or not isinstance(dataset.items, TextItems):
        return []
    texts, targets = dataset.items.texts, dataset.annotations
    if isinstance(targets, Texts):
        return [
            [("source", _beginning(texts[i])), ("target", _beginning(targets.texts[i]))]
            for i in _spread(dataset)
        ]
    return [[(class_of(dataset, i), _beginning(texts[i]))] for i in _spread(dataset)]


def _beginning(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}..."


def _slices(volumes: Volumes) -> Iterator[tuple[str, bytes]]:
    """Yield captions and JPEGs of the middle slices of volumes, beside their masks."""
    cases = [case for split in volumes.cases.values() for case in split]
    for case in cases[:READ_VOLUMES]:
        try:
            values = read_scan(case.volume.path).values[0]
            mask = None if case.mask is None else read_scan(case.mask).values[0]
        except (UnreadableInput, OSError):
            continue
        middle = values.shape[2] // 2
        pixels = drawing.as_rgb(values[:, :, middle].T[:, :, None])
        if mask is not None and mask.shape == values.shape:
            classes = np.rint(mask[:, :, middle].T).astype(np.uint8)
            count = int(classes.max()) + 1
            pixels = drawing.side_by_side([pixels, drawing.overlay_mask(pixels, classes, count)])
        yield f"{stem_of(case.volume.path)}, slice {middle}", _jpeg(pixels)


def _jpeg(pixels: drawing.Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _label(dataset: Dataset, index: int) -> str:
    if isinstance(dataset.annotations, Texts):
        return dataset.annotations.texts[index]
    return class_of(dataset, index) if dataset.annotations is None else _boxes(dataset, index)


def _boxes(dataset: Dataset, index: int) -> str:
    """Return the number of boxes of each class in an image as text; "" if it has masks."""
    boxes = None if dataset.annotations is None else dataset.annotations.boxes
    if boxes is None:
        return ""
    counts = Counter(dataset.classes[int(row[4])] for row in boxes[index])
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "no box"


def _colours(inspection: Inspection) -> dict[str, str]:
    """Return the colours of the classes by name."""
    dataset = next(iter(inspection.datasets.values()), None)
    if dataset is None or dataset.annotations is None or dataset.has_texts:
        return {}
    palette = drawing.colours(len(dataset.classes))
    return {name: "#" + bytes(colour).hex() for name, colour in zip(dataset.classes, palette)}


def _spread(dataset: Dataset) -> list[int]:
    """Return the indices of at most EXAMPLES samples, round-robin over the classes."""
    if not dataset.classes or dataset.has_texts:
        return spread(EXAMPLES, len(dataset))
    labels = dataset.labels
    queues = [
        np.flatnonzero((labels[:, i] > 0 if labels.ndim == 2 else labels == i).numpy()).tolist()
        for i in range(len(dataset.classes))
    ]
    chosen: list[int] = []
    while len(chosen) < EXAMPLES and any(queues):
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < EXAMPLES:
                chosen.append(queue.pop(0))
    return chosen


def _drawn(dataset: Dataset, index: int) -> drawing.Pixels:
    if isinstance(dataset.modality, AudioModality):
        waveform = dataset.read(index).tensor
        seconds = waveform.shape[1] / dataset.modality.rate
        uncut = replace(dataset.modality, fixed=False)
        return with_seconds(spectrogram_pixels(spectrogram(uncut, waveform)), seconds)
    image = displayed_image(dataset, index).convert("RGB")
    scale = _SIDE / max(image.size)
    size = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    pixels = np.asarray(image.resize(size[::-1], method))
    annotations, count = dataset.annotations, len(dataset.classes)
    if annotations is None:
        return pixels
    if isinstance(annotations, Masks):
        mask = np.asarray(annotations.mask(index))
        rows = (np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]
        columns = (np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]
        return drawing.overlay_mask(
            pixels, mask[rows.astype(int)[:, None], columns.astype(int)], count
        )
    if annotations.boxes is None:
        return pixels
    rows = annotations.boxes[index]
    numbers = rows[:, 4].astype(int).tolist()
    named = len(numbers) <= _MAX_LABELLED
    names = [dataset.classes[number] if named else "" for number in numbers]
    return drawing.draw_boxes(pixels, (rows[:, :4] * scale).tolist(), numbers, names, count)
