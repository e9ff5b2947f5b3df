"""What a finished run tells of a few of its validation images, for its report."""

import warnings
from pathlib import Path

from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.report import SEEN
from plusx.run.dense_predictions import GroundTruth, name_of, predict_dense
from plusx.run.folder import load_run
from plusx.run.prediction import write_predictions
from plusx.run.predictor import Failed, Predictor, Source
from plusx.run.volume_predictions import made_volumes, see_volumes, stored_volumes


EXAMPLES = 6
VOLUMES = 2


def draw_examples(folder: Path, source: Dataset | None) -> None:
    """Draw masks or boxes of a few images of `source` into the run's folder.

    The run is finished, so where they cannot be drawn that is said and nothing else. OSError: the
    disk.
    """
    if source is None or source.annotations is None:
        return
    run = load_run(folder)
    if not run.task.dense or run.recipe is None:
        return
    volumetric = source.modality.ndim == 3
    count = min(VOLUMES if volumetric else EXAMPLES, len(source))
    places = [place * len(source) // count for place in range(count)]
    failed: Failed = []
    try:
        predictor = Predictor(run, device=run.recipe.device.kind)
        if volumetric:
            volumes = made_volumes(source, places)
            if source.paths is not None:
                volumes = stored_volumes(run, [source.paths[place] for place in places], failed)
            told = see_volumes(predictor, volumes, folder / SEEN)
        else:
            images: list[Source]
            if source.paths is None:
                images = [source.read(place).tensor for place in places]
            else:
                images = [source.paths[place] for place in places]
            told = predict_dense(
                predictor,
                images,
                GroundTruth([source]),
                failed,
                out=folder / SEEN,
                batch_size=1,
                names=[name_of(source, place) for place in places],
            )
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{printable(folder)}: no examples are drawn: {error}", stacklevel=2)
        return
    if told["predictions"]:
        write_predictions(folder / SEEN, {**told, "failed": failed})
