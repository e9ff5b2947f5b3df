"""Recipes: all that a run is told, as frozen data read from one complete TOML file.

A recipe is named by its path or, if it is shipped with plusx, by its name; `key=value` overrides
change fields and nothing else. Whatever is wrong is a UserError of one line: where it stands,
what was given, what is allowed.
"""

from plusx.recipe.reading import load_recipe, parse_recipe
from plusx.recipe.sets import KnownData, OwnData
from plusx.recipe.tables import Compare, Init, NetByName, Recipe
from plusx.recipe.writing import differences, to_dict, to_toml


__all__ = [
    "Compare",
    "Init",
    "KnownData",
    "NetByName",
    "OwnData",
    "Recipe",
    "differences",
    "load_recipe",
    "parse_recipe",
    "to_dict",
    "to_toml",
]
