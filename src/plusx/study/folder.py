"""The folder of a comparison or a study: whether it is the one that a recipe began."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from plusx.errors import UserError
from plusx.recipe import Recipe, differences, parse_recipe


# Fields that may change between two starts: they choose what is compared, not how it is trained.
HARMLESS = (
    "checkpoint.",
    "compare.",
    "data.workers",
    "device.threads",
    "net.base",
    "seed",
    "study.",
)


def refuse_other(recipe: Recipe, out: Path, what: Literal["comparison", "study"]) -> None:
    """UserError if `out` is something else, or was begun with another recipe."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; a {what} needs a folder")
    file = out / "recipe.toml"
    if not file.is_file():
        others = sorted(entry.name for entry in out.iterdir() if not _ours(entry.name))
        if others:
            raise UserError(
                f"{out} is not empty and not the folder of a {what}: {', '.join(others[:3])}; "
                "choose another one"
            )
        return
    before = parse_recipe(file.read_text(encoding="utf-8"), where=str(file))
    if (before.compare if what == "comparison" else before.study) is None:
        raise UserError(f"{out} is the folder of something else than a {what}; choose another one")
    changed = [
        f"{key}: {change}"
        for key, change in differences(before, recipe).items()
        if not key.startswith(HARMLESS) or key == "study.kind"
    ]
    if changed:
        raise UserError(
            f"{out} was begun with another recipe ({'; '.join(changed)}); choose another folder, "
            "or give the recipe that it was begun with"
        )


def keep_history(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A result without a new run: it keeps jobs and seconds of the old one, and if all else is
    equal too, command and date."""
    history = ("jobs", "seconds", "command", "date")
    same = all(before.get(key) == value for key, value in now.items() if key not in history)
    keys = history if same else history[:2]
    return {**now, **{key: before[key] for key in keys if key in before}}


def _ours(name: str) -> bool:
    return name in ("runs", "lock.json") or (name.startswith(".plusx-") and name.endswith(".tmp"))
