"""From the [data] of a recipe to images with boxes or masks."""

from plusx.data.dataset import Dataset
from plusx.data.readers.annotated import open_annotated
from plusx.data.readers.annotation_index import LayoutOptions
from plusx.data.sets.cells import open_cells
from plusx.recipe import Recipe
from plusx.recipe.sets import CellData, SceneData


def open_scene_split(recipe: Recipe, data: SceneData | CellData, split: str) -> Dataset:
    """One split of scenes. Masks of boxes are only asked for where the head has a use for them."""
    instances = recipe.head is not None and recipe.head.kind == "mask-rcnn"
    if isinstance(data, CellData):
        return open_cells(split, size=data.size, instances=instances)
    return open_annotated(
        data.path,
        data.kind,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        size=data.size,
        on_unreadable=data.on_unreadable,
        options=LayoutOptions(
            classes=data.classes,
            values=data.values,
            ignore=data.ignore,
            test=data.test,
            channels=data.channels,
            components=data.parts,
            min_area=data.smallest,
            instances=instances,
        ),
    )
