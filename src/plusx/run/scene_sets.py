"""From the [data] of a recipe to images with boxes or masks."""

from plusx.data.cells import open_cells
from plusx.data.scene_list import SceneWish
from plusx.data.scenes import open_scenes
from plusx.data.source import Source
from plusx.recipe import Recipe
from plusx.recipe.sets import CellData, SceneData


def open_scene_split(recipe: Recipe, data: SceneData | CellData, split: str) -> Source:
    """One split of scenes. Masks of boxes are only asked for where the head has a use for them."""
    instances = recipe.head is not None and recipe.head.kind == "mask-rcnn"
    if isinstance(data, CellData):
        return open_cells(split, size=data.size, instances=instances)
    return open_scenes(
        data.path,
        data.kind,
        split=split,
        seed=recipe.seed,
        validation=data.validation,
        size=data.size,
        on_unreadable=data.on_unreadable,
        wish=SceneWish(
            classes=data.classes,
            values=data.values,
            ignore=data.ignore,
            test=data.test,
            channels=data.channels,
            parts=data.parts,
            smallest=data.smallest,
            instances=instances,
        ),
    )
