"""What a finished run tells of a few of its validation images, for its report."""

import warnings
from pathlib import Path

from plusx.data.image import printable
from plusx.data.source import Source
from plusx.report import SEEN
from plusx.run.evaluation import Viewed, views_of
from plusx.run.folder import load_run
from plusx.run.prediction import stored_images, write_predictions
from plusx.run.seeing import Truths, see
from plusx.run.volume_predictions import see_volumes
from plusx.tasks.prepare import prepare


EXAMPLES = 6
VOLUMES = 2


def draw_examples(folder: Path, source: Source | None) -> None:
    """Draw masks or boxes of images of `source`, which lie in files, into the run's folder.

    The run is finished, so where they cannot be drawn that is said and nothing else. OSError: the
    disk.
    """
    if source is None or source.paths is None:
        return
    if source.truth is None and source.volumes is None:
        return
    run = load_run(folder)
    if not run.tells_places or run.recipe is None:
        return
    count = min(EXAMPLES if source.volumes is None else VOLUMES, len(source))
    chosen = [source.paths[place * len(source) // count] for place in range(count)]
    failed: list[dict[str, str]] = []
    try:
        task = Viewed(prepare(run.task, device=run.recipe.device.kind), views_of(run, None))
        if source.volumes is not None:
            told = see_volumes(run, task, chosen, failed, folder / SEEN)
        else:
            images = stored_images(run, chosen, failed)
            told = see(run, task, images, Truths([source]), out=folder / SEEN, batch_size=1)
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{printable(folder)}: no examples are drawn: {error}", stacklevel=2)
        return
    if told["predictions"]:
        write_predictions(folder / SEEN, {**told, "failed": failed})
