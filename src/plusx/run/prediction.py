"""What a trained network says of image files: rows for a table, JSON and CSV."""

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plusx import store
from plusx.data.batch import Batch
from plusx.data.image_file import DEFAULT_LIMIT, UnreadableImage, Verdict, open_image, printable
from plusx.data.modality import BandsModality, Modality
from plusx.data.readers.folder import scan_images
from plusx.data.readers.table import JOINT
from plusx.data.readers.volumes import scans_in
from plusx.data.rng import CounterRNG
from plusx.data.sample import Sample, image_tensor
from plusx.errors import UserError
from plusx.run.evaluation import tta_of
from plusx.run.folder import UNFINISHED, Run
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented, Tta
from plusx.train.loop import evaluating


# A spreadsheet would run a cell that begins with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def predict(
    run: Run,
    paths: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    tta: Tta | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Predictions for image files, and for those in folders and the folders within.

    Gives `classes`, `predictions` (path, label, probability, and probabilities in the order of the
    classes; with several labels an image also `labels`, those of 0.5 and more) and `failed` (path,
    reason): a file that cannot be used is named there and stops no other. Of a run that tells
    embeddings a prediction has `embedding`, a vector of unit length, in the place of an answer, and
    there are no `classes`; with masks or boxes `predictions` are those of
    plusx.run.dense_predictions.predict_dense, which draws them into the folder `out`.

    UserError: a path does not exist, or there is no image. RuntimeError: no file can be used.
    """
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: at least 1")
    failed: list[dict[str, str]] = []
    volumes = run.preprocessing.ndim == 3
    files = scans_in(paths) if volumes else image_files(paths, failed)
    if not run.finished:
        warnings.warn(f"{run.path}: {UNFINISHED}", stacklevel=2)
    task = prepare(run.task, device=device, precision="float32")
    augmented = TestTimeAugmented(task, tta_of(run, tta))
    if volumes:
        from plusx.run.volume_predictions import see_volumes, stored_volumes, tested_among

        scans, looks = stored_volumes(run, files, failed), tested_among(files)
        result = see_volumes(run, augmented, scans, out, looks)
        _refuse_none(result["predictions"], failed)
        return {**result, "failed": failed}
    if run.tells_places:
        from plusx.run.dense_predictions import GroundTruth, own_sources, predict_dense

        stored, truth = stored_images(run, files, failed), GroundTruth(own_sources(run, files))
        result = predict_dense(
            run, augmented, stored, truth, out=out, batch_size=batch_size, requested=files
        )
        _refuse_none(result["predictions"], failed)
        return {**result, "failed": failed}
    predictions: list[dict[str, Any]] = []
    with evaluating(augmented), torch.inference_mode():
        for names, images in prepared_images(run, files, batch_size, failed):
            inputs = run.preprocessing.normalise(images.to(task.device))
            rows = augmented.predict(Batch(inputs)).cpu().rows(run.classes)
            for name, row in zip(names, rows, strict=True):
                predictions.append({"path": printable(name), **row})
    _refuse_none(predictions, failed)
    classes = [] if run.embeds else list(run.classes)
    return {"classes": classes, "predictions": predictions, "failed": failed}


def image_files(paths: Sequence[str | Path], failed: list[dict[str, str]]) -> list[str]:
    """The files named, and the images in the folders named, in the order of their names.

    What is found there but can be no image of a set (a pipe, a link into itself) goes to `failed`.
    """
    files: list[str] = []
    for path in map(str, paths):
        if not os.path.lexists(path):
            raise UserError(f"{printable(path)}: no such file or folder")
        found = scan_images(path)
        used = [entry.path for entry in found if entry.state == "used"]
        if not used:
            raise UserError(f"{printable(path)}: a folder without images")
        files += used
        failed += [
            {"path": printable(entry.path), "reason": entry.reason}
            for entry in found
            if entry.state == "refused"
        ]
    return files


def write_predictions(folder: str | Path, result: dict[str, Any]) -> list[Path]:
    """predictions.json and predictions.csv under `folder`; their paths."""
    folder = store.make_folder(folder)
    store.write_json(folder / "predictions.json", result)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(_table(result))
    store.write_text(folder / "predictions.csv", text.getvalue())
    return [folder / "predictions.json", folder / "predictions.csv"]


def prepared_images(
    run: Run, files: Sequence[str], batch_size: int, failed: list[dict[str, str]]
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of at most `batch_size` images that can be used; the others go to `failed`."""
    names: list[str] = []
    images: list[Tensor] = []
    known = run.preprocessing
    if known.ndim == 3:
        raise UserError(f"{run.path} is for volumes: plusx predict and evaluate take them")
    decoded = _decoded(run, files, failed) if known.kind == "image" else _bands(run, files, failed)
    for path, image in decoded:
        names.append(path)
        if isinstance(image, Tensor):
            images.append(image)
        elif run.tells_places:
            from plusx.run.dense_inference import letterboxed

            images.append(letterboxed(run, image_tensor(image)))
        else:
            images.append(seen(known, Sample(image)))
        if len(names) == batch_size:
            yield names, torch.stack(images)
            names, images = [], []
    if names:
        yield names, torch.stack(images)


def seen(modality: Modality, sample: Sample) -> Tensor:
    """What a network sees of a sample, before it is normalised."""
    transform = modality.transform("", train=False)
    return transform(sample, CounterRNG.of(0, 0, np.zeros(1, np.int64))).tensor


def stored_images(
    run: Run, files: Sequence[str], failed: list[dict[str, str]]
) -> Iterator[tuple[str, Tensor]]:
    """Images (c, h, w) that can be used, as large as they are; the others go to `failed`."""
    for path, image in _decoded(run, files, failed):
        yield path, image_tensor(image)


def _bands(
    run: Run, files: Sequence[str], failed: list[dict[str, str]]
) -> Iterator[tuple[str, Tensor]]:
    """Images of bands (c, h, w) at the network's size; those that cannot be used go to `failed`."""
    known = run.preprocessing
    assert isinstance(known, BandsModality)
    verdicts = []
    for path in files:
        try:
            image = known.read_checked(path)
        except (UnreadableImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            failed.append({"path": printable(path), "reason": reason or str(error)})
            continue
        verdicts.append(Verdict(None, low=float(image.min()), high=float(image.max())))
        yield path, seen(known, Sample(torch.from_numpy(image)))
    if (problem := known.common_problem(verdicts)) is not None:
        warnings.warn(problem, stacklevel=2)


def _decoded(
    run: Run, files: Sequence[str], failed: list[dict[str, str]]
) -> Iterator[tuple[str, Image.Image]]:
    for path in files:
        try:
            image = open_image(path, DEFAULT_LIMIT, run.preprocessing.channels)
        except (UnreadableImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            failed.append({"path": printable(path), "reason": reason or str(error)})
            continue
        yield path, image


def _refuse_none(predictions: Sequence[Any], failed: Sequence[Mapping[str, str]]) -> None:
    """RuntimeError where no file could be used."""
    if predictions:
        return
    said = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
    none = "the only file cannot" if len(failed) == 1 else f"none of {len(failed)} files can"
    raise RuntimeError(f"{none} be used: {said}")


def _table(result: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The rows of predictions.csv, the names of the columns first."""
    rows = result["predictions"]
    classes = [_cell(name) for name in result["classes"]]
    if "boxes" in rows[0]:
        yield ["path", "label", "score", "left", "top", "right", "bottom"]
        for row in rows:
            for box in row["boxes"]:
                yield [_cell(row["path"]), _cell(box["label"]), box["score"], *box["box"]]
    elif "class_fractions" in rows[0]:
        yield ["path", "label", *classes]
        for row in rows:
            yield [_cell(row["path"]), _cell(row["label"]), *row["class_fractions"].values()]
    elif "embedding" in rows[0]:
        yield ["path", *map(str, range(len(rows[0]["embedding"])))]
        for row in rows:
            yield [_cell(row["path"]), *row["embedding"]]
    elif "labels" in rows[0]:
        yield ["path", "label", "probability", "labels", *classes]
        for row in rows:
            said = [_cell(row["path"]), _cell(row["label"]), row["probability"]]
            yield [*said, _cell(JOINT.join(row["labels"])), *row["probabilities"]]
    else:
        yield ["path", "label", "probability", *classes]
        for row in rows:
            said = [_cell(row["path"]), _cell(row["label"]), row["probability"]]
            yield [*said, *row["probabilities"]]


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
