"""What a network tells of volumes: masks in the files' own voxels, rows, and pictures of slices."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Num, UInt8
from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.dataset import Dataset
from plusx.data.image_file import UnreadableImage, printable
from plusx.data.modality import Modality, VolumeModality
from plusx.data.modality.space import (
    affine_of,
    reoriented,
    reoriented_spacing,
    resampled,
    with_stored_axes,
)
from plusx.data.modality.volume import space_of
from plusx.data.prediction import LabelMaps
from plusx.data.readers.scans import Placement, Scan, as_nifti, read_scan, stem_of
from plusx.data.readers.volume_files import Reading, mask_beside, prepared, stored_mask
from plusx.data.volume_items import Grid, VolumeItems
from plusx.metrics.segmentation import SurfaceDistanceMeter
from plusx.report.predictions import MOST, predictions_page
from plusx.run import drawing
from plusx.run.dense_predictions import record_look
from plusx.run.evaluation import home_of
from plusx.run.folder import Run
from plusx.run.predictor import Predictor, reason_of
from plusx.train.loop import evaluating


FOLDERS = ("masks", "overlays", "side-by-side")
Mask = UInt8[np.ndarray, "x y z"]


class Asked(NamedTuple):
    """A volume that is asked about: as it is stored, and as the network sees it."""

    path: str  # or its name, where it lies in no file
    scan: Scan
    image: Grid
    right: Mask | None  # in the scan's voxels
    tested: bool = False  # whether looking at what is right is a look at the test set


def stored_volumes(run: Run, files: Sequence[str], failed: list[dict[str, str]]) -> Iterator[Asked]:
    """Volumes in files that can be used, one at a time; the others go to `failed`."""
    for path in files:
        try:
            scan = read_scan(path)
            image = prepared(scan, Reading(_volumes(run), run.classes))
        except (UnreadableImage, OSError) as error:
            failed.append({"path": printable(path), "reason": reason_of(error)})
            continue
        yield Asked(path, scan, image, _truth(run, path, scan), _tests(path))


def _volumes(run: Run) -> VolumeModality:
    assert isinstance(run.preprocessing, VolumeModality)
    return run.preprocessing


def made_volumes(source: Dataset, places: Sequence[int]) -> Iterator[Asked]:
    """Volumes that lie in no file, as if they were stored on the network's grid."""
    space = space_of(source.modality)
    assert isinstance(source.items, VolumeItems)
    affine = affine_of(space.orientation, space.spacing)
    for place in places:
        volume = source.items.volumes[place]
        image = np.array(volume.image)  # which may be mapped from the disk, and not for writing
        right = None if volume.mask is None else np.array(volume.mask)
        scan = Scan(image, affine, Placement(affine, affine, (1, 1), "mm"))
        yield Asked(volume.name, scan, image, right, source.split == "test")


def tested_among(files: Sequence[str]) -> int:
    """How many of the volumes are of a test set whose masks lie beside them."""
    return sum(_tests(path) and mask_beside(path) is not None for path in files)


def _tests(path: str) -> bool:
    return Path(path).resolve().parts[-3:-2] == ("test",)


def see_volumes(
    predictor: Predictor, volumes: Iterable[Asked], out: str | Path | None, tested: int = 0
) -> dict[str, Any]:
    """Predictions for volumes, and where `out` is a folder their masks and pictures in it.

    Gives `predictions`: path, size, shares (of the classes), label (the class of the largest
    share), and volumes_ml, the millilitres of each class. Where a mask lies beside a volume, as in
    a folder that is trained on, `truth` has Dice and HD95 in the volume's own voxels. With `out` a
    row names its `mask`, a NIfTI file whose voxels lie where the volume's do, and its `overlay` and
    `side_by_side`, of the slice with the most voxels of classes other than the first.

    `tested` is how many of them are of a test set; a use of it is recorded before the first is set
    beside its truth.
    """
    rows: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    names: set[str] = set()
    run, task = predictor.run, predictor.task
    uses, home = None, home_of(run)
    for path, scan, image, right, looks in volumes:
        inputs = run.preprocessing.normalise(torch.from_numpy(image)[None])
        with evaluating(task), torch.inference_mode():
            prediction = task.predict(Batch(inputs.to(task.device)))
        if not bool(prediction.tensors()["probabilities"].isfinite().all()):
            raise FloatingPointError(f"{printable(path)}: the prediction is not finite")
        probabilities = prediction.tensors()["probabilities"][0]
        mask = in_voxels_of(scan, probabilities, run.preprocessing)
        row = _row(run, path, scan, mask)
        if right is not None:
            if looks and uses is None and home is not None:
                uses = record_look(home, tested)
            row["ground_truth"] = _agreement(run, mask, right, scan)
        if out is not None:
            name = stem_of(path)
            while name in names:
                name = f"{name}-{len(rows) + 1}"
            names.add(name)
            picture = _draw(Path(out), run, row, scan, mask, right, name)
            pictures += [picture] if len(pictures) < MOST else []
        rows.append(row)
    result: dict[str, Any] = {"classes": list(run.classes), "predictions": rows}
    if uses is not None:
        result["test_uses"] = uses
    if out is not None and rows:
        page = predictions_page(
            result, pictures, drawing.colours(len(run.classes)), printable(run.path)
        )
        store.write_text(Path(out) / "predictions.html", page)
    return result


def in_voxels_of(scan: Scan, told: Tensor, preprocessing: Modality) -> Mask:
    """The class of every voxel of a scan, from probabilities (k, d, h, w) on the network's grid.

    Probabilities, not classes, are brought back to the scan's spacing: edges stay smooth.
    """
    space = space_of(preprocessing)
    spacing = reoriented_spacing(scan.affine, space.orientation)
    size = tuple(
        int(side) for side in reoriented(scan.values[0], scan.affine, space.orientation).shape
    )
    best = np.full(size, -1, np.float32)
    mask = np.zeros(size, np.uint8)
    for number in range(len(told)):
        one: Float32[np.ndarray, "d h w"] = told[number].float().cpu().numpy()
        one = resampled(one, space.spacing, spacing, size)
        better = one > best
        mask[better], best[better] = number, one[better]
    return np.ascontiguousarray(with_stored_axes(mask, scan.affine, space.orientation))


def _truth(run: Run, path: str, scan: Scan) -> Mask | None:
    """The mask that lies beside a volume, in its voxels; None where there is none that fits."""
    beside = mask_beside(path)
    if beside is None:
        return None
    data = None if run.recipe is None else run.recipe.data
    ignored = getattr(data, "ignore", ())
    try:
        return stored_mask(beside, scan, Reading(_volumes(run), run.classes, ignored))
    except (UnreadableImage, OSError) as error:
        warnings.warn(f"{printable(path)} is not compared with its mask: {error}", stacklevel=2)
        return None


def _row(run: Run, path: str, scan: Scan, mask: Mask) -> dict[str, Any]:
    counts = np.bincount(mask.ravel(), minlength=len(run.classes))
    shares = (counts / mask.size).tolist()
    each = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000  # ml of a voxel
    return {
        "path": printable(path),
        "size": [int(side) for side in mask.shape],
        "label": run.classes[int(counts.argmax())],
        "class_fractions": dict(zip(run.classes, shares, strict=True)),
        "volumes_ml": dict(zip(run.classes, (counts * each).tolist(), strict=True)),
    }


def _agreement(run: Run, told: Mask, right: Mask, scan: Scan) -> dict[str, Any]:
    """The figures of one volume, in its own voxels."""
    if (right == drawing.UNJUDGED).all():
        return {}
    labels = LabelMaps(torch.from_numpy(told)[None])
    truth = torch.from_numpy(right)[None]
    spacing = [float(side) for side in np.linalg.norm(scan.affine[:3, :3], axis=0)]
    metrics: dict[str, Any] = {}
    for meter in run.task.meters():
        if isinstance(meter, SurfaceDistanceMeter):
            meter.spacing = tuple(spacing)  # the volume's own, whose voxels these are
        meter.update(labels, Batch(truth, truth))
        metrics |= meter.compute()
    return {key: metrics[key] for key in ("mean_iou", "dice", "pixel_accuracy", "hd95")}


def _draw(
    out: Path,
    run: Run,
    row: dict[str, Any],
    scan: Scan,
    mask: Mask,
    right: Mask | None,
    name: str,
) -> bytes:
    """Write the mask and the pictures of one volume, and name them in its row."""
    for folder in FOLDERS:
        store.make_folder(out / folder)
    row["mask"] = f"masks/{name}.nii.gz"
    store.write_bytes(out / row["mask"], as_nifti(mask, scan.placement))
    space, count = space_of(run.preprocessing), len(run.classes)
    turned = reoriented(mask, scan.affine, space.orientation)
    place = int((turned > 0).sum((1, 2)).argmax()) if turned.any() else len(turned) // 2
    values = reoriented(scan.values, scan.affine, space.orientation)
    pixels = drawing.as_rgb(_windowed(values[:, place], run.preprocessing))
    times = drawing.enlargement(pixels.shape[:2])
    large = drawing.enlarged(pixels, times)
    shown = [mask] if right is None else [mask, right]
    drawn = [
        drawing.overlaid(
            large,
            drawing.enlarged(
                np.ascontiguousarray(reoriented(each, scan.affine, space.orientation)[place]), times
            ),
            count,
        )
        for each in shown
    ]
    beside = drawing.png(drawing.abreast([large, *drawn]))
    row["overlay"], row["side_by_side"] = f"overlays/{name}.png", f"side-by-side/{name}.png"
    store.write_bytes(out / row["overlay"], drawing.png(drawn[0]))
    store.write_bytes(out / row["side_by_side"], beside)
    return beside


def _windowed(
    values: Num[np.ndarray, "c h w"], preprocessing: Modality
) -> UInt8[np.ndarray, "h w 1"]:
    """The first channel of a slice as a grey picture of what the network sees of it."""
    low, high = preprocessing.low, preprocessing.high
    seen = values[0].astype(np.float64)
    if space_of(preprocessing).percentiles:
        low, high = np.percentile(seen, (0.5, 99.5))
    grey = (seen - low) / max(float(high) - float(low), 1e-12)
    return (255 * grey.clip(0, 1)).round().astype(np.uint8)[:, :, None]
