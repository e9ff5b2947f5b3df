"""One run of a comparison or a study: its recipe and its measurements. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plusx.recipe import Recipe


DIVERGED = "diverged.json"  # in a run's folder: why its training diverged

Factor = str | int | float
Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Measurement:
    """A function of `catalogue.MEASURES` with its settings.

    Its result is a JSON file in the run's folder, named by its text, for example
    surface(25,1.0).json, so that results with other settings are not mistaken for it.
    """

    name: str
    settings: tuple[Factor, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(str, self.settings))})" if self.settings else self.name

    @classmethod
    def parse(cls, text: str) -> "Measurement":
        name, _, rest = text.partition("(")
        return cls(
            name,
            tuple(_factor(setting) for setting in rest.removesuffix(")").split(",") if setting),
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network that is trained with one recipe and seed and then measured, or only measured.
    Trials of one name differ only in their seed and make one row."""

    name: str
    recipe: Recipe
    seed: int | None = None  # None: one trial for each seed of the study
    factors: Mapping[str, Factor] = field(default_factory=dict)  # what the study varies
    train: bool = True
    measurements: tuple[Measurement, ...] = ()
    # name of the trial, with the same seed, whose trained weights are the initial weights
    initial_weights: str = ""
    split: Split = "validation"  # of the final evaluation

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name of the trial's folder."""
        return _folder(self.name, self.seed)

    @property
    def previous(self) -> str:
        """The folder name of the trial that trains the initial weights; empty if there is none."""
        return _folder(self.initial_weights, self.seed) if self.initial_weights else ""

    def finished(self, folder: Path) -> bool:
        """Whether the folder is complete. A diverged trial is finished too."""
        files = ["result.json"] if self.train else []
        files += [f"{self.split}.json"] if self.split != "validation" else []
        files += [f"{measurement}.json" for measurement in self.measurements]
        diverged = (folder / DIVERGED).is_file()
        return diverged or all((folder / name).is_file() for name in files)


def _folder(name: str, seed: int | None) -> str:
    suffix = "" if seed is None else f"-seed{seed}"
    return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', name).strip('-')}{suffix}"


def _factor(text: str) -> Factor:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
