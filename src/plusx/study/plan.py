"""What a study is: cells to be made, what is looked at in them, and what is said of them.

A cell is a run of its own: it is trained by a recipe with a seed, and then looked at, or only
looked at. A look is a function of a recipe, a run's folder and its settings, if it has any. Its
answer is kept in that folder as LOOK.json, so that a study that was interrupted goes on where it
stopped; the settings are part of that name, so that an answer to other settings is not taken for
this one's.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from plusx.data.source import Source
from plusx.errors import UserError
from plusx.grammar.spec import Net
from plusx.recipe import NetByName, Recipe
from plusx.run import load_run, parts
from plusx.study.rows import Run
from plusx.zoo import Plain, find


Factor = str | int | float
Look = Callable[..., Any]  # (recipe, folder, settings...) -> JSON


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study. Cells of one name differ in their seed alone and make one row."""

    name: str
    seed: int
    recipe: Recipe
    factors: Mapping[str, Factor] = field(default_factory=dict)  # what the study varies
    train: bool = True
    looks: tuple[str, ...] = ()  # keys of catalogue.LOOKS, or `look_with(key, settings...)`
    begins: str = ""  # the folder of the cell, made before, whose weights it begins with
    split: Literal["validation", "test"] = "validation"  # evaluated on at the end

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', self.name).strip('-')}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A cell and what came of it; `run` is None where nothing was trained."""

    cell: Cell
    folder: Path
    run: Run | None
    looks: Mapping[str, Any]

    def seen(self, name: str) -> Any:
        """The answer of the look of that name, whatever its settings were."""
        (found,) = (answer for look, answer in self.looks.items() if asked(look)[0] == name)
        return found


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what is made to answer it, and how the answer is said.

    `cells` gets the recipe and the images it trains on, and raises UserError where the study
    cannot be asked of a network. `columns`, `rows` and `figures` are as docs/studies.md says.
    """

    title: str
    question: str
    cells: Callable[[Recipe, Source], list[Cell]]
    columns: Callable[[Recipe], Sequence[Mapping[str, Any]]]
    rows: Callable[[Sequence[Made]], list[dict[str, Any]]]
    finding: Callable[[Sequence[Mapping[str, Any]]], str]
    figures: Callable[[Sequence[Made], Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
    notes: Callable[[Recipe], list[str]] = lambda recipe: []
    # Tables in the place of one, and files with their contents to be written beside result.json.
    tables: Callable[
        [Recipe, Sequence[Made], Sequence[Mapping[str, Any]]], list[dict[str, Any]]
    ] = lambda recipe, made, rows: []
    files: Callable[[Recipe, Sequence[Made], Sequence[Mapping[str, Any]]], dict[str, str]] = (
        lambda recipe, made, rows: {}
    )


class Opened(NamedTuple):
    """A network in evaluation mode and the images of its recipe."""

    net: nn.Module
    sets: parts.Sets


def opened(recipe: Recipe, folder: Path) -> Opened:
    """The network that was trained in the folder; where none was, the recipe's as it begins."""
    sets = parts.open_sets(recipe)
    if (folder / "result.json").is_file():
        return Opened(load_run(folder).net, sets)
    net, preprocessing = parts.make_net(parts.resolved(recipe, sets.train))
    if preprocessing is not None:
        sets = sets.prepared_as(preprocessing)
    parts.begin_from(recipe, net, sets.train)
    return Opened(net.eval(), sets)


def look_with(name: str, *settings: int | float | str) -> str:
    """A look with its settings, as `surface(25,1.0)`."""
    return f"{name}({','.join(map(str, settings))})"


def asked(look: str) -> tuple[str, list[Factor]]:
    """The name of a look and its settings."""
    name, _, rest = look.partition("(")
    return name, [_value(text) for text in rest.removesuffix(")").split(",") if text]


def _value(text: str) -> Factor:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def by_name(made: Iterable[Made]) -> dict[str, list[Made]]:
    """The cells of each row, in the order of their seeds as the study names them."""
    groups: dict[str, list[Made]] = {}
    for each in made:
        groups.setdefault(each.cell.name, []).append(each)
    return groups


def with_net(recipe: Recipe, net: Net | str, seed: int, source: Source) -> Recipe:
    """The recipe of one cell: another network and seed, and nothing of a study.

    A spec is fitted to the images: their channels, size and classes. A name keeps what the
    recipe's [net] says besides.
    """
    own = replace(recipe, seed=seed, compare=None, study=None)
    if isinstance(net, str):
        if isinstance(find(net), Plain) or isinstance(recipe.net, Net):
            return replace(own, net=NetByName(base=net))
        return replace(own, net=replace(recipe.net, base=net))
    return replace(own, net=fitted(net, source))


def fitted(net: Net, source: Source) -> Net:
    """The spec for these images."""
    height, width = source.preprocessing.size
    return replace(
        net,
        in_channels=source.preprocessing.channels,
        num_classes=len(source.classes),
        size=height if height == width else (height, width),
    )


def spec(name: str) -> Net:
    """The spec of a network of the zoo. UserError for an unknown name, or a plain module."""
    found = find(name)
    if isinstance(found, Plain):
        raise UserError(
            f"{name} is a plain module: it has no blocks that a study could look at or change"
        )
    return found
