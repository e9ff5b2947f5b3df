"""What a trained network says of image files: rows for a table, JSON and CSV."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from plusx import store
from plusx.data.image import DEFAULT_LIMIT, DamagedImage, is_image, open_image, printable
from plusx.data.loader import as_tensor
from plusx.data.on_image import evaluation_view
from plusx.run.evaluation import Viewed, Views
from plusx.run.folder import Run
from plusx.tasks.prepare import prepare
from plusx.train.loop import evaluating


SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
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
    files = image_files(paths)
    task = prepare(run.task, device=device)
    chosen = views or (run.recipe.evaluate.views if run.recipe is not None else "one")
    viewed = Viewed(task, chosen)
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with evaluating(viewed), torch.inference_mode():
        for names, images in _prepared(run, files, batch_size, failed):
            inputs = run.preprocessing.normalise(images.to(task.device))
            for name, row in zip(names, viewed.predict(inputs).cpu().tolist(), strict=True):
                predictions.append(_row(run, name, row))
    if not predictions:
        said = "; ".join(f"{each['path']}: {each['reason']}" for each in failed[:3])
        raise RuntimeError(f"none of {len(failed)} files can be used: {said}")
    return {"classes": list(run.classes), "predictions": predictions, "failed": failed}


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and the image files in the folders named, in order of their names.

    Hidden files, links to folders and what is no image are passed over within folders.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(_images_in(path))
            if not found:
                raise ValueError(f"{printable(path)}: a folder without images")
            files += found
        elif not os.path.lexists(path):
            raise ValueError(f"{printable(path)}: no such file or folder")
        else:
            files.append(path)
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


def _images_in(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and _may_be_image(path):
                yield path


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return is_image(file.read(32))
    except OSError:
        return False


def _prepared(
    run: Run, files: Sequence[Path], batch_size: int, failed: list[dict[str, str]]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches of at most `batch_size` images that can be used; the others go to `failed`."""
    names: list[Path] = []
    images: list[Tensor] = []
    for path in files:
        try:
            image = open_image(path, DEFAULT_LIMIT, run.preprocessing.channels)
        except (DamagedImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            failed.append({"path": printable(path), "reason": reason or str(error)})
            continue
        names.append(path)
        images.append(as_tensor(_view(run, image)))
        if len(names) == batch_size:
            yield names, torch.stack(images)
            names, images = [], []
    if names:
        yield names, torch.stack(images)


def _view(run: Run, image: Image.Image) -> Image.Image:
    """The image as the network was evaluated on: whole, or the window in the middle."""
    height, width = run.preprocessing.size
    if run.sees_whole:
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BILINEAR)
    return evaluation_view(image, (height, width))


def _row(run: Run, path: Path, probabilities: list[float]) -> dict[str, Any]:
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    row: dict[str, Any] = {
        "path": printable(path),
        "label": run.classes[best],
        "probability": probabilities[best],
        "probabilities": probabilities,
    }
    if run.recipe is not None and run.recipe.task.multilabel:
        row["labels"] = [c for c, p in zip(run.classes, probabilities, strict=True) if p >= 0.5]
    return row


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
