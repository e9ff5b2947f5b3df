"""Which finished runs may be averaged: those of one version, one machine and the same images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plusx import store


# of environment.json: what has to be equal in runs that make one mean
SAME = ("plusx", "torch", "processor", "device_name")


def strangers(folders: Mapping[Path, str]) -> dict[Path, str]:
    """Runs that are unlike most of the others, and why; each is shown, and in no mean.

    `folders` says of each run whose images it has to share: those with one value were made with
    the same data and seed.
    """
    surroundings = {folder: _surroundings(folder) for folder in folders}
    images = {folder: _images(folder) for folder in folders}
    usual = _most(list(surroundings.values()))
    found: dict[Path, str] = {}
    for folder, shared in folders.items():
        own = surroundings[folder]
        why = [
            f"{key} {value}, not {expected}"
            for key, value, expected in zip(SAME, own, usual, strict=True)
            if value != expected
        ]
        if images[folder] is not None:
            others = [images[other] for other, its in folders.items() if its == shared]
            if images[folder] != _most(others):
                why.append("other images than the other runs")
        if why:
            found[folder] = "; ".join(why)
    return found


def _surroundings(folder: Path) -> tuple[str, ...]:
    said = store.read_json(folder / "environment.json")
    return tuple(str(said.get(key)) for key in SAME)


def _images(folder: Path) -> str | None:
    """What says which images they were; None where the folder does not know of any."""
    if not (folder / "data.json").is_file():
        return None
    said: dict[str, Any] = store.read_json(folder / "data.json")
    prints = [said[part] and said[part]["fingerprint"] for part in ("train", "validation")]
    return str([*prints, said["classes"], said["preprocessing"]])


def _most(values: Sequence[Any]) -> Any:
    """The commonest; of equally common ones the last, which is the one made last."""
    counted = Counter(values)
    most = max(counted.values())
    return [value for value in values if counted[value] == most][-1]
