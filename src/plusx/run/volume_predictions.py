"""Predictions for volumes: masks in the voxels of the files, rows, and overlays of slices."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Num, UInt8
from torch import Tensor

from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.image_file import UnreadableInput, printable
from plusx.data.modality import Modality, VolumeModality
from plusx.data.modality.space import (
    Space,
    affine_of,
    reoriented,
    reoriented_spacing,
    resampled,
    with_stored_axes,
)
from plusx.data.prediction import LabelMaps
from plusx.data.readers.scans import Placement, Scan, as_nifti, stem_of
from plusx.data.readers.volume_files import (
    Reading,
    further_channels,
    mask_beside,
    prepared,
    read_channels,
    stored_mask,
)
from plusx.data.volume_items import Grid, VolumeItems
from plusx.metrics.segmentation import IGNORE_INDEX, SurfaceDistanceMeter
from plusx.run import drawing
from plusx.run.evaluation import home_of
from plusx.run.folder import Run
from plusx.run.prediction_writer import PredictionWriter
from plusx.run.sources import Failed, reason_of
from plusx.tasks.task import Task
from plusx.train.loop import evaluating


Mask = UInt8[np.ndarray, "x y z"]


class StoredVolume(NamedTuple):
    """A volume as stored, and resampled as the input of the network."""

    path: str  # or a name, if it is not a file
    scan: Scan
    image: Grid
    target: Mask | None  # in the scan's voxels
    is_test: bool = False  # whether it is in a test set


def stored_volumes(run: Run, files: Sequence[str], failed: Failed) -> Iterator[StoredVolume]:
    """Yield the volumes of readable files; add the others to `failed`."""
    for path in files:
        try:
            scan = read_channels([path, *further_channels(path, run.preprocessing.channels)])
            image = prepared(scan, Reading(_modality(run), run.classes))
        except (UnreadableInput, OSError) as error:
            failed.append({"path": printable(path), "reason": reason_of(error)})
            continue
        yield StoredVolume(path, scan, image, _ground_truth(run, path, scan), _is_test(path))


def _modality(run: Run) -> VolumeModality:
    assert isinstance(run.preprocessing, VolumeModality)
    return run.preprocessing


def _grid(modality: Modality) -> Space:
    assert modality.grid is not None
    return modality.grid


def synthetic_volumes(dataset: Dataset, indices: Sequence[int]) -> Iterator[StoredVolume]:
    """Yield synthetic volumes, stored on the network's grid."""
    space = _grid(dataset.modality)
    assert isinstance(dataset.items, VolumeItems)
    affine = affine_of(space.orientation, space.spacing)
    for index in indices:
        volume = dataset.items.volumes[index]
        image = np.array(volume.image)  # a copy, since it may be a read-only memory map
        target = None if volume.mask is None else np.array(volume.mask)
        scan = Scan(image, affine, Placement(affine, affine, (1, 1), "mm"))
        yield StoredVolume(volume.name, scan, image, target, dataset.split == "test")


def num_test_volumes(files: Sequence[str]) -> int:
    """Return the number of files in a test set that have masks."""
    return sum(_is_test(path) and mask_beside(path) is not None for path in files)


def _is_test(path: str) -> bool:
    return Path(path).resolve().parts[-3:-2] == ("test",)


def predict_volumes(
    run: Run,
    task: Task,
    volumes: Iterable[StoredVolume],
    out: str | Path | None = None,
    num_test: int = 0,
) -> dict[str, Any]:
    """Return predictions for volumes; write masks and overlays if `out` is a folder.

    task: the run's task on its device, possibly with test-time augmentation
    num_test: number of volumes in a test set; its use is recorded before the first comparison with
        ground truth
    `predictions` has path, size, class_fractions, label (the class of the largest fraction), and
    volumes_ml, the millilitres of each class. If a volume has a mask file, `ground_truth` has the
    metrics in the voxels of the file. With `out`, a row has the paths `mask`, a NIfTI file in the
    volume's space, and `overlay` and `side_by_side`, of the slice with the most voxels of classes
    other than the first.
    """
    writer, home, names = PredictionWriter(run, out), home_of(run), set[str]()
    for path, scan, image, target, is_test in volumes:
        inputs = run.preprocessing.normalise(torch.from_numpy(image)[None])
        with evaluating(task), torch.inference_mode():
            prediction = task.predict(Batch(inputs.to(task.device)))
        probabilities = prediction.tensors()["probabilities"][0]
        if not bool(probabilities.isfinite().all()):
            raise FloatingPointError(f"{printable(path)}: the prediction is not finite")
        mask = in_voxels_of(scan, probabilities, run.preprocessing)
        row = _row(run, path, scan, mask)
        if target is not None:
            if is_test and home is not None:
                writer.record_test_use(home, num_test)
            row["ground_truth"] = _metrics(run, mask, target, scan)
        if out is not None:
            name = re.sub(r"[^\w .()+-]+", "_", stem_of(path)).lstrip(".")[:200] or "volume"
            while name in names:
                name = f"{name}-{len(writer.rows) + 1}"
            names.add(name)
            _draw(writer, row, name, scan, [mask] if target is None else [mask, target])
        writer.rows.append(row)
    return writer.result()


def in_voxels_of(scan: Scan, probabilities: Tensor, preprocessing: Modality) -> Mask:
    """Return the class of every voxel of a scan, from probabilities (k, d, h, w) on the grid.

    Probabilities, not classes, are resampled to the scan's spacing, for smooth edges.
    """
    space = _grid(preprocessing)
    spacing = reoriented_spacing(scan.affine, space.orientation)
    size = tuple(
        int(side) for side in reoriented(scan.values[0], scan.affine, space.orientation).shape
    )
    best = np.full(size, -1, np.float32)
    mask = np.zeros(size, np.uint8)
    for index in range(len(probabilities)):
        values: Float32[np.ndarray, "d h w"] = probabilities[index].float().cpu().numpy()
        values = resampled(values, space.spacing, spacing, size)
        better = values > best
        mask[better], best[better] = index, values[better]
    return np.ascontiguousarray(with_stored_axes(mask, scan.affine, space.orientation))


def _ground_truth(run: Run, path: str, scan: Scan) -> Mask | None:
    """Return the mask of a volume's mask file in its voxels; None if there is no usable one."""
    mask_path = mask_beside(path)
    if mask_path is None:
        return None
    data = None if run.recipe is None else run.recipe.data
    ignored = getattr(data, "ignore", ())
    try:
        return stored_mask(mask_path, scan, Reading(_modality(run), run.classes, ignored))
    except (UnreadableInput, OSError) as error:
        warnings.warn(f"{printable(path)} is not compared with its mask: {error}", stacklevel=2)
        return None


def _row(run: Run, path: str, scan: Scan, mask: Mask) -> dict[str, Any]:
    counts = np.bincount(mask.ravel(), minlength=len(run.classes))
    voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    return {
        "path": printable(path),
        "size": [int(side) for side in mask.shape],
        "label": run.classes[int(counts.argmax())],
        "class_fractions": dict(zip(run.classes, (counts / mask.size).tolist(), strict=True)),
        "volumes_ml": dict(zip(run.classes, (counts * voxel_ml).tolist(), strict=True)),
    }


def _metrics(run: Run, mask: Mask, target: Mask, scan: Scan) -> dict[str, Any]:
    """Return the metrics of one volume in the voxels of its file."""
    if (target == IGNORE_INDEX).all():
        return {}
    prediction, targets = LabelMaps(torch.from_numpy(mask)[None]), torch.from_numpy(target)[None]
    spacing = tuple(float(side) for side in np.linalg.norm(scan.affine[:3, :3], axis=0))
    metrics: dict[str, Any] = {}
    for meter in run.task.meters():
        if isinstance(meter, SurfaceDistanceMeter):
            meter.spacing = spacing
        meter.update(prediction, Batch(targets, targets))
        metrics |= meter.compute()
    return {key: metrics[key] for key in ("mean_iou", "dice", "pixel_accuracy", "hd95")}


def _draw(
    writer: PredictionWriter, row: dict[str, Any], name: str, scan: Scan, masks: Sequence[Mask]
) -> None:
    """Write the predicted mask, and overlays of one slice for each of the masks."""
    preprocessing, num_classes = _modality(writer.run), len(writer.run.classes)
    orientation = _grid(preprocessing).orientation
    reoriented_masks = [reoriented(mask, scan.affine, orientation) for mask in masks]
    predicted = reoriented_masks[0]
    largest = int((predicted > 0).sum((1, 2)).argmax())
    index = largest if predicted.any() else len(predicted) // 2
    values = reoriented(scan.values, scan.affine, orientation)[:, index]
    pixels = drawing.as_rgb(_windowed(values, preprocessing))
    times = drawing.enlargement(pixels.shape[:2])
    pixels = drawing.enlarged(pixels, times)
    overlays = [
        drawing.overlay_mask(
            pixels, drawing.enlarged(np.ascontiguousarray(mask[index]), times), num_classes
        )
        for mask in reoriented_masks
    ]
    nifti = (".nii.gz", as_nifti(masks[0], scan.placement))
    writer.draw(row, name, pixels, overlays, nifti)


def _windowed(
    values: Num[np.ndarray, "c h w"], preprocessing: VolumeModality
) -> UInt8[np.ndarray, "h w 1"]:
    """Return the first channel of a slice as grey values, in the network's window."""
    low, high = preprocessing.low, preprocessing.high
    channel = values[0].astype(np.float64)
    if _grid(preprocessing).percentiles:
        low, high = np.percentile(channel, (0.5, 99.5))
    grey = (channel - low) / max(float(high) - float(low), 1e-12)
    return (255 * grey.clip(0, 1)).round().astype(np.uint8)[:, :, None]
