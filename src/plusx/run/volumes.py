"""Volumes in a run: which ones a recipe opens, and what follows from them for its task."""

from dataclasses import replace

from plusx.data.dataset import Dataset
from plusx.data.modality import VolumeModality
from plusx.errors import UserError
from plusx.recipe import Recipe
from plusx.recipe.sets import VolumeData
from plusx.recipe.tables import Segment


def asked_of(recipe: Recipe, source: Dataset) -> Recipe:
    """The recipe with what its volumes say: their spacing, and the window and the background of
    its task.

    UserError: volumes are not what the task is asked of, or what it says is not of images.
    """
    modality, task = source.modality, recipe.task
    space = modality.space if isinstance(modality, VolumeModality) else None
    if space is not None and not isinstance(task, Segment):
        raise UserError(f'[task] kind = "{task.kind}": volumes are for [task] kind = "segment"')
    if not isinstance(task, Segment):
        return recipe
    sides = 2 if space is None else 3
    if task.window is not None and len(task.window) != sides:
        raise UserError(
            f"[task] window = {list(task.window)}: {sides} of them, one for each dimension of "
            f"{source.name}"
        )
    if space is None:
        if task.spacing is not None:
            raise UserError(f"[task] spacing is of volumes, and {source.name} has images")
        return recipe
    told = replace(
        task,
        window=task.window or space.patch,
        spacing=task.spacing or space.spacing,
        background=task.background or source.classes[0],
    )
    data = recipe.data
    if isinstance(data, VolumeData):
        data = replace(data, spacing=space.spacing)  # other volumes are brought to it too
    return replace(recipe, task=told, data=data)
