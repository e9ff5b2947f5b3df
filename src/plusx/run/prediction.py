"""What a trained network says of image files: rows for a table, JSON and CSV."""

import csv
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plusx import store
from plusx.data.folder import scan_images
from plusx.data.image import DEFAULT_LIMIT, DamagedImage, open_image, printable
from plusx.data.loader import as_tensor, viewed
from plusx.run.evaluation import Viewed, Views
from plusx.run.folder import UNFINISHED, Run
from plusx.tasks.prepare import prepare
from plusx.train.loop import evaluating


# A spreadsheet would run a cell that begins with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def predict(
    run: Run,
    paths: Sequence[str | Path],
    *,
    views: Views | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Predictions for image files, and for those in folders and the folders within.

    Gives `classes`, `predictions` (path, label, probability, and probabilities in the order of the
    classes; with several labels an image also `labels`, those of 0.5 and more) and `failed` (path,
    reason): a file that cannot be used is named there and stops no other.

    ValueError: a path does not exist, or there is no image. RuntimeError: no file can be used.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: at least 1")
    failed: list[dict[str, str]] = []
    files = image_files(paths, failed)
    if not run.finished:
        warnings.warn(f"{run.path}: {UNFINISHED}", stacklevel=2)
    task = prepare(run.task, device=device)
    chosen = views or (run.recipe.evaluate.views if run.recipe is not None else "one")
    viewed = Viewed(task, chosen)
    predictions: list[dict[str, Any]] = []
    with evaluating(viewed), torch.inference_mode():
        for names, images in prepared_images(run, files, batch_size, failed):
            inputs = run.preprocessing.normalise(images.to(task.device))
            for name, row in zip(names, viewed.predict(inputs).cpu().tolist(), strict=True):
                predictions.append(_row(run, name, row))
    if not predictions:
        said = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
        none = "the only file cannot" if len(failed) == 1 else f"none of {len(failed)} files can"
        raise RuntimeError(f"{none} be used: {said}")
    return {"classes": list(run.classes), "predictions": predictions, "failed": failed}


def image_files(paths: Sequence[str | Path], failed: list[dict[str, str]]) -> list[str]:
    """The files named, and the images in the folders named, in the order of their names.

    What is found there but can be no image of a set (a pipe, a link into itself) goes to `failed`.
    """
    files: list[str] = []
    for path in map(str, paths):
        if not os.path.lexists(path):
            raise ValueError(f"{printable(path)}: no such file or folder")
        found = scan_images(path)
        used = [entry.path for entry in found if entry.state == "used"]
        if not used:
            raise ValueError(f"{printable(path)}: a folder without images")
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
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "probability", *map(_cell, result["classes"])])
    for row in result["predictions"]:
        said = [_cell(row["path"]), _cell(row["label"]), row["probability"]]
        table.writerow([*said, *row["probabilities"]])
    store.write_text(folder / "predictions.csv", text.getvalue())
    return [folder / "predictions.json", folder / "predictions.csv"]


def prepared_images(
    run: Run, files: Sequence[str], batch_size: int, failed: list[dict[str, str]]
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of at most `batch_size` images that can be used; the others go to `failed`."""
    names: list[str] = []
    images: list[Tensor] = []
    for path in files:
        try:
            image = open_image(path, DEFAULT_LIMIT, run.preprocessing.channels)
        except (DamagedImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            failed.append({"path": printable(path), "reason": reason or str(error)})
            continue
        names.append(path)
        images.append(as_tensor(viewed(image, run.preprocessing.size, run.view)))
        if len(names) == batch_size:
            yield names, torch.stack(images)
            names, images = [], []
    if names:
        yield names, torch.stack(images)


def _row(run: Run, path: str, probabilities: list[float]) -> dict[str, Any]:
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    row: dict[str, Any] = {
        "path": printable(path),
        "label": run.classes[best],
        "probability": probabilities[best],
        "probabilities": probabilities,
    }
    if run.multilabel:
        row["labels"] = [c for c, p in zip(run.classes, probabilities, strict=True) if p >= 0.5]
    return row


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
