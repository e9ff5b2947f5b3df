"""Recipes: the configuration of a run as frozen data, read from one TOML file.

A recipe is given by its path or, if it is shipped with plusx, by its name; `key=value` overrides
change single fields. Errors are UserErrors of one line: location, given value, allowed values.
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
