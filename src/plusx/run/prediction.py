"""Predictions of a trained network for files, as JSON and CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx import store
from plusx.data.readers.table import LABEL_SEPARATOR
from plusx.run.dense_predictions import GroundTruth, own_sources, predict_dense
from plusx.run.folder import Run
from plusx.run.predictor import Predictor, refuse_none
from plusx.run.sources import Failed
from plusx.run.volume_predictions import num_test_volumes, predict_volumes, stored_volumes
from plusx.tasks.generate import set_decoding
from plusx.tasks.tta import Tta


# a spreadsheet evaluates cells that begin with one of these
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def predict(
    run: Run,
    paths: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    tta: Tta | None = None,
    beam: int | None = None,
    cached: bool = True,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """Return predictions for files, and for all files in folders; of texts, also for texts.

    Returns `classes`, `predictions` (path, label, probability, and probabilities in the order of
    the classes; with several labels per image also `labels`, those of probability 0.5 and more),
    and `failed`, the path and reason of each unusable file. Predictions of an embedding network
    have only path and `embedding`, a unit vector, and `classes` is empty. Masks, boxes and volumes
    have the rows of `predict_dense` and `predict_volumes`, which write overlays into the folder
    `out`.
    `beam` and `cached` are for texts that the network generates: see plusx.nn.decoding.decode.
    Raises UserError if a path does not exist or a folder has no image, RuntimeError if no file can
    be used.
    """
    if beam is not None or not cached:
        set_decoding(run.task, beam=beam, cached=cached)
    predictor = Predictor(run, tta=tta, device=device)
    failed: Failed = []
    sources = predictor.sources(paths, failed)
    result: dict[str, Any]
    if run.preprocessing.ndim == 3:
        files = [str(source) for source in sources]
        volumes = stored_volumes(run, files, failed)
        result = predict_volumes(run, predictor.task, volumes, out, num_test_volumes(files))
    elif run.task.dense:
        ground_truth = GroundTruth(own_sources(run, [str(source) for source in sources]))
        result = predict_dense(
            predictor, sources, ground_truth, failed, out=out, batch_size=batch_size
        )
    else:
        rows = predictor(sources, batch_size=batch_size, failed=failed)
        result = {"classes": list(predictor.classes), "predictions": rows}
    refuse_none(result["predictions"], failed)
    return {**result, "failed": failed}


def write_predictions(folder: str | Path, result: dict[str, Any]) -> list[Path]:
    """Write predictions.json and predictions.csv to a folder; return their paths, and that of a
    predictions.html with drawn boxes or masks, if `predict` wrote one there."""
    folder = store.make_folder(folder)
    store.write_json(folder / "predictions.json", result)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(_table(result))
    store.write_text(folder / "predictions.csv", text.getvalue())
    written = [folder / "predictions.json", folder / "predictions.csv"]
    rows = result["predictions"]
    is_drawn = bool(rows) and not {"boxes", "class_fractions"}.isdisjoint(rows[0])
    page = folder / "predictions.html"
    return [*written, page] if is_drawn and page.is_file() else written


def _table(result: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the rows of predictions.csv, beginning with the column names."""
    rows = result["predictions"]
    key = next(iter(rows[0]))  # path or text
    classes = [_cell(name) for name in result["classes"]]
    if "boxes" in rows[0]:
        yield ["path", "label", "score", "left", "top", "right", "bottom"]
        for row in rows:
            for box in row["boxes"]:
                yield [_cell(row["path"]), _cell(box["label"]), box["score"], *box["box"]]
    elif "class_fractions" in rows[0]:
        yield [key, "label", *classes]
        for row in rows:
            yield [_cell(row[key]), _cell(row["label"]), *row["class_fractions"].values()]
    elif "embedding" in rows[0]:
        yield [key, *map(str, range(len(rows[0]["embedding"])))]
        for row in rows:
            yield [_cell(row[key]), *row["embedding"]]
    elif "labels" in rows[0]:
        yield [key, "label", "probability", "labels", *classes]
        for row in rows:
            cells = [_cell(row[key]), _cell(row["label"]), row["probability"]]
            yield [*cells, _cell(LABEL_SEPARATOR.join(row["labels"])), *row["probabilities"]]
    elif "label" not in rows[0]:
        columns = [name for name, value in rows[0].items() if not isinstance(value, dict)]
        yield columns
        for row in rows:
            values = [row[name] for name in columns]
            yield [_cell(value) if isinstance(value, str) else value for value in values]
    else:
        yield [key, "label", "probability", *classes]
        for row in rows:
            cells = [_cell(row[key]), _cell(row["label"]), row["probability"]]
            yield [*cells, *row["probabilities"]]


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
