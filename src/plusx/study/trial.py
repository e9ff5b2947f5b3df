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

    Its result is stored in the run's folder as JSON, named by its text, such as surface(25,1.0), so
    that results of other settings are not mistaken for it.
    """

    name: str
    settings: tuple[Factor, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({','.join(map(str, self.settings))})" if self.settings else self.name

    @classmethod
    def parse(cls, text: str) -> "Measurement":
        name, _, rest = text.partition("(")
        return cls(name, tuple(_factor(part) for part in rest.removesuffix(")").split(",") if part))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network trained by a recipe with a seed, and then measured, or only measured.

    Trials of one name differ in their seed alone and make one row.
    """

    name: str
    recipe: Recipe
    seed: int | None = None  # None: one trial for each seed of the study
    factors: Mapping[str, Factor] = field(default_factory=dict)  # what the study varies
    train: bool = True
    measurements: tuple[Measurement, ...] = ()
    begins: str = (
        ""  # the name of the trial, of the same seed, whose trained weights it begins with
    )
    split: Split = "validation"  # evaluated on at the end

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return _folder(self.name, self.seed)

    @property
    def previous(self) -> str:
        """The name of the folder of the trial that it begins with; empty if there is none."""
        return _folder(self.begins, self.seed) if self.begins else ""

    def finished(self, folder: Path) -> bool:
        """Whether its folder is complete, or it diverged, which is a result too."""
        files = ["result.json"] if self.train else []
        files += [f"{self.split}.json"] if self.split != "validation" else []
        files += [f"{measurement}.json" for measurement in self.measurements]
        diverged = (folder / DIVERGED).is_file()
        return diverged or all((folder / name).is_file() for name in files)


def _folder(name: str, seed: int | None) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', name).strip('-')}-seed{seed}"


def _factor(text: str) -> Factor:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
