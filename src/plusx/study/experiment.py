"""A study in a folder: its cells made in processes of their own, looked at, and put into words.

The folder holds runs/, recipe.toml, result.json and report.html. A study that was interrupted goes
on: cells that are finished are not repeated, and one that was being made goes on where it was
saved.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from plusx import store
from plusx.data.source import Source
from plusx.errors import UserError
from plusx.recipe import NetByName, Recipe, to_toml
from plusx.run import parts
from plusx.run.folder import RECIPE
from plusx.run.training import refuse_other_recipe
from plusx.study.alike import strangers
from plusx.study.catalogue import STUDIES
from plusx.study.crew import DIVERGED, Crew, Job
from plusx.study.folder import as_before, refuse_other, surroundings
from plusx.study.making import (
    Planned,
    at_a_time,
    crew_of,
    length_of,
    make,
)
from plusx.study.plan import Cell, Made, Study
from plusx.study.rows import read_finished


def study(
    recipe: Recipe,
    out: str | Path,
    *,
    jobs: int | None = None,
    command: str = "",
    progress: TextIO | None = None,
) -> dict[str, Any]:
    """Make the study of a recipe's table [study]: what result.json holds, see docs/studies.md.

    `jobs` cells are made at a time, each in a process of its own; None: as many as there are cores
    for the threads of a cell, one with a GPU. `command` is noted; `progress` is told how it goes
    (None: standard error).

    UserError: the recipe has no [study] table, the study cannot be asked of a network that it
    names, or the recipe is not the one that `out` was begun with. RuntimeError: cells failed,
    named with their seeds; the others are kept.
    """
    out = Path(out)
    if recipe.study is None:
        raise UserError(
            "the recipe does not say what to study: it needs a table [study] with a kind, one of "
            f"{', '.join(STUDIES)}"
        )
    if recipe.task.kind != "classify":
        raise UserError(f'[task] kind = "{recipe.task.kind}": studies are of classifiers')
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs = {jobs}: at least 1 cell is made at a time")
    found = STUDIES[recipe.study.kind]
    refuse_other(recipe, out, "study")
    source = parts.open_split(recipe, "train")
    threads = recipe.device.threads or 1
    cells = [_begun(cell, out) for cell in _checked(found, recipe, source, threads)]
    _refuse_other_cells(cells, source, out)
    planned = [
        Planned(
            Job(
                cell.name,
                cell.seed,
                out / "runs" / cell.folder,
                to_toml(cell.recipe),
                cell.split,
                cell.train,
                cell.looks,
                may_diverge=True,
            ),
            cell.recipe,
            images,
        )
        for cell, images in zip(cells, _images(cells), strict=True)
    ]
    size = min(jobs or at_a_time(recipe, threads), len(planned))
    begun = time.monotonic()
    with Crew(size) as crew, store.lock(out):
        refuse_other(recipe, out, "study")  # it may have been begun meanwhile
        _refuse_other_cells(cells, source, out)
        store.write_text(out / "recipe.toml", to_toml(recipe))
        count = 0
        for first in (True, False):  # those that others begin with are made before them
            chosen = [
                each
                for each, cell in zip(planned, cells, strict=True)
                if first != bool(cell.begins)
            ]
            if chosen:
                count += make(crew, chosen, progress or sys.stderr)
        said, files = _result(found, recipe, source, cells, out)
        result = {
            **said,
            "jobs": crew_of(size, threads),
            "command": command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # Known only where all of it was done at once.
            "seconds": time.monotonic() - begun if count == len(cells) else None,
        }
        if count == 0 and (out / "result.json").is_file():
            result = as_before(store.read_json(out / "result.json"), result)
        for name, text in files.items():
            store.write_text(out / name, text)
        store.write_json(out / "result.json", result)
        from plusx.report import write_report

        write_report(out)
    return result


def rows(recipe: Recipe, out: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of the study, one after the other; see `study`."""
    yield from study(recipe, out)["rows"]


def _images(cells: Sequence[Cell]) -> list[int] | list[float]:
    """How many images an epoch of each cell has, beside the other cells. They are counted where
    some cells are as long in epochs and others in steps; else it is the share that trains."""
    if len({cell.recipe.epochs is None for cell in cells}) == 1:
        shares = [getattr(cell.recipe.data, "train", None) for cell in cells]
        return [share if isinstance(share, float) else 1.0 for share in shares]
    known: dict[Any, int] = {}
    for cell in cells:
        if cell.recipe.data not in known:
            known[cell.recipe.data] = len(parts.open_split(cell.recipe, "train"))
    return [known[cell.recipe.data] for cell in cells]


def _checked(found: Study, recipe: Recipe, source: Source, threads: int) -> list[Cell]:
    assert recipe.study is not None
    for key, several in vars(recipe.study).items():
        doubled = (
            [each for each in several if several.count(each) > 1]
            if isinstance(several, tuple)
            else []
        )
        if doubled:
            raise UserError(f"[study] {key}: {doubled[0]} stands there twice")
    cells = [
        replace(
            cell,
            recipe=replace(
                cell.recipe, device=replace(cell.recipe.device, threads=threads), study=None
            ),
        )
        for cell in found.cells(recipe, source)
    ]
    folders = [cell.folder for cell in cells]
    twice = [name for name in dict.fromkeys(folders) if folders.count(name) > 1]
    if twice:
        raise UserError(f"[study]: {twice[0]} stands there twice")
    for cell in {cell.recipe.net: cell for cell in cells}.values():
        # Checked with the size of the images before anything begins.
        try:
            parts.spec_of(parts.resolved(cell.recipe, source).net)
        except ValueError as error:
            raise UserError(f"{cell.name} on {source.name}: {error}") from error
    if recipe.data.validation == 0 and any(cell.train for cell in cells):
        raise UserError("[data] validation = 0: there are no validation images to judge by")
    return cells


def _begun(cell: Cell, out: Path) -> Cell:
    """The cell with the place of the weights that it begins with."""
    if not cell.begins:
        return cell
    net = cell.recipe.net
    assert isinstance(net, NetByName)
    weights = str(out / "runs" / cell.begins)
    return replace(cell, recipe=replace(cell.recipe, net=replace(net, weights=weights)))


def _refuse_other_cells(cells: Sequence[Cell], source: Source, out: Path) -> None:
    """UserError where a cell of that name was made by another recipe.

    What a study is over may change between two starts, and not all of it is in the cells' names:
    the depth of `skips` and `ablation` is not.
    """
    for cell in cells:
        folder = out / "runs" / cell.folder
        if cell.train and (folder / RECIPE).is_file():
            refuse_other_recipe(folder, parts.resolved(cell.recipe, _own(cell, source)))


def _own(cell: Cell, source: Source) -> Source:
    """The images that a cell trains on, as far as its network depends on them."""
    classes = getattr(cell.recipe.data, "classes", None)
    if classes is None or tuple(classes) == source.classes:
        return source
    return parts.open_split(cell.recipe, "train")


def _result(
    found: Study, recipe: Recipe, source: Source, cells: Sequence[Cell], out: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of result.json but for what the clock and the caller say, and other files."""
    assert recipe.study is not None
    lost = [(cell, why) for cell in cells if (why := _diverged(cell, out))]
    every = [_made(cell, out) for cell in cells if not _diverged(cell, out)]
    if not every:
        raise RuntimeError(f"every cell diverged; the first: {lost[0][1]}")
    odd = strangers({each.folder: _shares(each) for each in every})
    made = [each for each in every if each.folder not in odd]
    table = found.rows(made)
    said = {
        "kind": "study",
        "study": recipe.study.kind,
        "title": found.title,
        "question": found.question,
        "finding": found.finding(table) + _without(lost),
        "data": source.name,
        "split": getattr(recipe.study, "split", "validation"),
        "seeds": sorted({cell.seed for cell in cells}),
        "length": length_of(recipe),
        "columns": list(found.columns(recipe)),
        "rows": table,
        "tables": found.tables(recipe, made, table),
        "marked": [
            {**row, "why": odd[each.folder]}
            for each in every
            if each.folder in odd
            for row in found.rows([each])
        ]
        + [
            {"name": cell.name, "seeds": [cell.seed], "why": f"training diverged: {why}"}
            for cell, why in lost
        ],
        "figures": found.figures(made, table),
        "notes": found.notes(recipe),
        "recipe": to_toml(recipe),
        **surroundings(made[0].folder),
    }
    return said, found.files(recipe, made, table)


def _without(lost: Sequence[tuple[Cell, str]]) -> str:
    """What a finding about the others must not hide: means are over those that came to an end."""
    if not lost:
        return ""
    named = ", ".join(f"{cell.name} seed {cell.seed}" for cell, _ in lost)
    return f" Training diverged, and is in no mean: {named}."


def _diverged(cell: Cell, out: Path) -> str:
    """Why the cell's training came to nothing; empty where it came to something."""
    told = out / "runs" / cell.folder / DIVERGED
    return str(store.read_json(told)["why"]) if told.is_file() else ""


def _made(cell: Cell, out: Path) -> Made:
    folder = out / "runs" / cell.folder
    return Made(
        cell=cell,
        folder=folder,
        run=read_finished(folder, cell.name, cell.seed, "validation") if cell.train else None,
        looks={look: store.read_json(folder / f"{look}.json") for look in cell.looks},
    )


def _shares(made: Made) -> str:
    """Runs with the same data and seed have the same images."""
    return f"{made.cell.recipe.data} {made.cell.seed}"
