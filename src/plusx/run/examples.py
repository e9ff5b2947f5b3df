"""What a finished run tells of a few of its validation images, for its report."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from plusx.data.dataset import Dataset
from plusx.data.image_file import printable
from plusx.report import SEEN
from plusx.run.dense_predictions import GroundTruth, name_of, predict_dense
from plusx.run.evaluation import tta_of
from plusx.run.folder import load_run
from plusx.run.prediction import stored_images, write_predictions
from plusx.run.volume_predictions import made_volumes, see_volumes, stored_volumes
from plusx.tasks.prepare import prepare
from plusx.tasks.tta import TestTimeAugmented


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
    if not run.tells_places or run.recipe is None:
        return
    volumetric = source.modality.ndim == 3
    count = min(VOLUMES if volumetric else EXAMPLES, len(source))
    places = [place * len(source) // count for place in range(count)]
    failed: list[dict[str, str]] = []
    try:
        task = prepare(run.task, device=run.recipe.device.kind, precision="float32")
        task = TestTimeAugmented(task, tta_of(run, None))
        if volumetric:
            volumes = made_volumes(source, places)
            if source.paths is not None:
                volumes = stored_volumes(run, [source.paths[place] for place in places], failed)
            told = see_volumes(run, task, volumes, folder / SEEN)
        else:
            images: Iterator[tuple[str, Tensor]]
            images = ((name_of(source, place), source.read(place).tensor) for place in places)
            if source.paths is not None:
                images = stored_images(run, [source.paths[place] for place in places], failed)
            told = predict_dense(
                run, task, images, GroundTruth([source]), out=folder / SEEN, batch_size=1
            )
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{printable(folder)}: no examples are drawn: {error}", stacklevel=2)
        return
    if told["predictions"]:
        write_predictions(folder / SEEN, {**told, "failed": failed})
