"""Other data than a run's own, laid out as its own is."""

from dataclasses import replace
from pathlib import Path

from plusx.data.dataset import Split
from plusx.data.readers.annotated import annotated_splits
from plusx.data.readers.people import people_splits
from plusx.data.readers.volume_files import volume_splits
from plusx.data.sets.download import located
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
        parts = annotated_splits(data, known.kind)
        # others need not show every class
        shown = known.kind != "masks" and run.named
        classes = tuple(run.classes) if shown else known.classes
        there = replace(known, path=path, test="", validation=None, classes=classes)
    elif isinstance(known, PeopleData):
        parts = people_splits(located(data))
        there = replace(known, path=path, test=0, validation=None if parts else 0)
    elif isinstance(known, VolumeData):
        parts = volume_splits(located(data), known.patient)
        there = replace(known, path=path, validation=None)
    else:
        raise UserError(f'[data] kind = "{known.kind}" is made, not read from {data}')
    return replace(recipe, data=there), split if parts else "all"
