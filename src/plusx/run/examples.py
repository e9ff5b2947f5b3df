"""Example predictions on validation samples, for the report of a run."""

import warnings
from pathlib import Path

from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.report import EXAMPLES
from plusx.run.caption_examples import predict_captions
from plusx.run.dense_predictions import GroundTruth, name_of, predict_dense
from plusx.run.folder import load_run
from plusx.run.prediction import write_predictions
from plusx.run.predictor import Predictor
from plusx.run.sources import Failed
from plusx.run.volume_predictions import predict_volumes, stored_volumes, synthetic_volumes


NUM_IMAGES = 6
NUM_VOLUMES = 2
# what draws predictions that are neither masks nor boxes, by the kind of the task
DRAWN = {"caption": predict_captions}


def draw_examples(folder: Path, dataset: Dataset | None) -> None:
    """Write overlays of masks or boxes, or captions, of a few samples into the run's folder.

    Failures are warnings, since the run is finished; an OSError of the disk is raised.
    """
    if dataset is None or dataset.annotations is None:
        return
    run = load_run(folder)
    if run.recipe is None or not (run.task.dense or run.recipe.task.kind in DRAWN):
        return
    volumetric = dataset.modality.ndim == 3
    count = min(NUM_VOLUMES if volumetric else NUM_IMAGES, len(dataset))
    indices = [i * len(dataset) // count for i in range(count)]
    paths = None if dataset.paths is None else [dataset.paths[index] for index in indices]
    failed: Failed = []
    try:
        predictor = Predictor(run, device=run.recipe.device.kind)
        if run.recipe.task.kind in DRAWN:
            draw = DRAWN[run.recipe.task.kind]
            result = draw(predictor, dataset, indices, failed, folder / EXAMPLES)
        elif volumetric:
            volumes = (
                synthetic_volumes(dataset, indices)
                if paths is None
                else stored_volumes(run, paths, failed)
            )
            result = predict_volumes(predictor, volumes, folder / EXAMPLES)
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
