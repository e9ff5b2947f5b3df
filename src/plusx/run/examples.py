"""Example predictions on validation samples, for the report of a run."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.report import EXAMPLES
from plusx.run.caption_examples import predict_captions
from plusx.run.chosen_examples import spread
from plusx.run.dense_predictions import GroundTruth, name_of, predict_dense
from plusx.run.folder import load_run
from plusx.run.prediction import write_predictions
from plusx.run.predictor import Predictor
from plusx.run.sound_examples import predict_commands, predict_recordings, predict_transcripts
from plusx.run.sources import Failed
from plusx.run.text_examples import predict_texts, predict_translations
from plusx.run.volume_predictions import predict_volumes, stored_volumes, synthetic_volumes


# returns rows of predictions for some samples, and writes images of them into a folder
Drawer = Callable[[Predictor, Dataset, Failed, Path], list[dict[str, Any]]]
NUM_IMAGES = 6
NUM_VOLUMES = 2
# by kinds of task and inputs; masks and boxes are drawn by predict_dense and predict_volumes
DRAWN: dict[tuple[str, str], Drawer] = {
    ("caption", "image"): predict_captions,
    ("classify", "text"): predict_texts,
    ("translate", "text"): predict_translations,
    ("classify", "audio"): predict_recordings,
    ("transcribe", "audio"): predict_transcripts,
    ("spoken-command", "audio"): predict_commands,
}


def draw_examples(folder: Path, dataset: Dataset | None) -> None:
    """Write predictions for a few samples, with images of them, into the run's folder.

    Failures become warnings, since the run is finished; an OSError of the disk is raised.
    """
    if dataset is None:
        return
    run = load_run(folder)
    draw = run.recipe and DRAWN.get((run.recipe.task.kind, run.preprocessing.kind))
    if run.recipe is None or not (run.task.dense or draw):
        return
    volumetric = dataset.modality.ndim == 3
    count = min(NUM_VOLUMES if volumetric else NUM_IMAGES, len(dataset))
    indices = spread(count, len(dataset))
    paths = None if dataset.paths is None else [dataset.paths[index] for index in indices]
    failed: Failed = []
    try:
        predictor = Predictor(run, device=run.recipe.device.kind)
        if draw:
            rows = draw(predictor, dataset, failed, folder / EXAMPLES)
            result = {"classes": list(run.classes), "predictions": rows}
        elif volumetric:
            volumes = (
                synthetic_volumes(dataset, indices)
                if paths is None
                else stored_volumes(run, paths, failed)
            )
            result = predict_volumes(run, predictor.task, volumes, folder / EXAMPLES)
        else:
            result = predict_dense(
                predictor,
                paths or [dataset.read(index).tensor for index in indices],
                GroundTruth([dataset]),
                failed,
                out=folder / EXAMPLES,
                batch_size=1,
                names=[name_of(dataset, index) for index in indices],
            )
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{printable(folder)}: no examples are written: {error}", stacklevel=2)
        return
    if result["predictions"]:
        write_predictions(folder / EXAMPLES, {**result, "failed": failed})
