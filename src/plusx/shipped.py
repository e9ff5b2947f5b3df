"""The recipes that come with plusx, as text."""

import re
from importlib import resources


def shipped_recipes() -> list[str]:
    """Their names, in alphabetical order."""
    names = (entry.name for entry in (resources.files("plusx") / "recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML of the recipe of that name."""
    file = resources.files("plusx") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def summaries() -> list[dict[str, str]]:
    """name, and summary, the first sentence of the comment that a recipe begins with."""
    return [{"name": name, "summary": _summary(recipe_text(name))} for name in shipped_recipes()]


def _summary(text: str) -> str:
    comment = re.match(r"(?:#[^\n]*\n)*", text)
    assert comment is not None
    words = " ".join(line.lstrip("# ") for line in comment.group().splitlines())
    return re.split(r"(?<!al)[.] |: ", words, maxsplit=1)[0].strip()
