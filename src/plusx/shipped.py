"""The recipes that are shipped with plusx, as text."""

import re
from importlib import resources


def shipped_recipes() -> list[str]:
    """Return their names in alphabetical order."""
    names = (entry.name for entry in (resources.files("plusx") / "recipes").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """Return the TOML text of a shipped recipe."""
    file = resources.files("plusx") / "recipes" / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def summaries() -> list[dict[str, str]]:
    """Return name and summary of each recipe; the summary is the first sentence of its first
    comment."""
    return [{"name": name, "summary": _summary(recipe_text(name))} for name in shipped_recipes()]


def _summary(text: str) -> str:
    comment = re.match(r"(?:#[^\n]*\n)*", text)
    assert comment is not None
    words = " ".join(line.lstrip("# ") for line in comment.group().splitlines())
    return re.split(r"(?<!al)[.] |: ", words, maxsplit=1)[0].strip()
