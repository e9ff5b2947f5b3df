"""Other data than a run's own, laid out as its own is."""

from dataclasses import replace
from pathlib import Path

from plusx.data.download import located
from plusx.data.people import people_parts
from plusx.data.sample import Split
from plusx.data.scenes import scene_parts
from plusx.data.volume_files import volume_parts
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.sets import PeopleData, SceneData, VolumeData
from plusx.run.folder import Run


def laid_out_alike(
    run: Run, recipe: Recipe, data: str | Path, split: Split
) -> tuple[Recipe, Split]:
    """The recipe with `data` in the place of the run's own, and the split of it that is meant.

    How the run's own data was divided says nothing of others. What has no splits of its own is
    judged as a whole, as a folder of classes is.
    UserError: the run's data is made, or there is no such data.
    """
    known, path = recipe.data, str(data)
    there: SceneData | PeopleData | VolumeData
    if isinstance(known, SceneData):
        parts = scene_parts(data, known.kind)
        # others need not show every class
        shown = known.kind != "masks" and run.named
        classes = tuple(run.classes) if shown else known.classes
        there = replace(known, path=path, test="", validation=None, classes=classes)
    elif isinstance(known, PeopleData):
        parts = people_parts(located(data))
        there = replace(known, path=path, test=0, validation=None if parts else 0)
    elif isinstance(known, VolumeData):
        parts = volume_parts(located(data), known.patient)
        there = replace(known, path=path, validation=None)
    else:
        raise UserError(f'[data] kind = "{known.kind}" is made, not read from {data}')
    return replace(recipe, data=there), split if parts else "all"
