"""What a trained network says of image files: rows for a table, JSON and CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx import store
from plusx.data.readers.table import JOINT
from plusx.run.dense_predictions import GroundTruth, own_sources, predict_dense
from plusx.run.folder import Run
from plusx.run.predictor import Failed, Predictor, refuse_none
from plusx.run.volume_predictions import num_test_volumes, predict_volumes, stored_volumes
from plusx.tasks.tta import Tta


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
    predictor = Predictor(run, tta=tta, device=device)
    failed: Failed = []
    sources = predictor.sources(paths, failed)
    result: dict[str, Any]
    if run.preprocessing.ndim == 3:
        files = [str(source) for source in sources]
        volumes = stored_volumes(run, files, failed)
        result = predict_volumes(predictor, volumes, out, num_test_volumes(files))
    elif run.task.dense:
        truth = GroundTruth(own_sources(run, [str(source) for source in sources]))
        result = predict_dense(predictor, sources, truth, failed, out=out, batch_size=batch_size)
    else:
        rows = predictor(sources, batch_size=batch_size, failed=failed)
        result = {"classes": list(predictor.classes), "predictions": rows}
    refuse_none(result["predictions"], failed)
    return {**result, "failed": failed}


def write_predictions(folder: str | Path, result: dict[str, Any]) -> list[Path]:
    """predictions.json and predictions.csv under `folder`; their paths."""
    folder = store.make_folder(folder)
    store.write_json(folder / "predictions.json", result)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(_table(result))
    store.write_text(folder / "predictions.csv", text.getvalue())
    return [folder / "predictions.json", folder / "predictions.csv"]


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
            cells = [_cell(row["path"]), _cell(row["label"]), row["probability"]]
            yield [*cells, _cell(JOINT.join(row["labels"])), *row["probabilities"]]
    else:
        yield ["path", "label", "probability", *classes]
        for row in rows:
            cells = [_cell(row["path"]), _cell(row["label"]), row["probability"]]
            yield [*cells, *row["probabilities"]]


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
