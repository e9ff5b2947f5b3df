"""Claims that results of earlier runs decide: NAME.json, as `plusx compare`, `plusx study` and
tools/measure.py of the repository write them.

The value is that of a row, or the difference between two rows. The verdict follows from the
interval over the seeds, that of a difference is Welch's, as in studies; one seed decides nothing.
Such results are not in the wheel: without the file the claim names the command that writes it.
"""

from collections.abc import Mapping, Sequence
from operator import sub
from pathlib import Path
from typing import Any

from plusx import store
from plusx.errors import UserError
from plusx.evidence.claim import Claim, Recorded
from plusx.evidence.verdict import Options, Outcome
from plusx.statistics import UNBOUNDED, Difference, Interval, difference, mean_interval
from plusx.study.results import recorded_environment


def recorded(claim: Claim, options: Options) -> Outcome:
    """The value of a row of a result, or how much larger it is than that of another row.

    Raises UserError, with the command that writes it, if the result is missing, and with the names
    of the rows if one of them is not in it.
    """
    assert claim.recorded is not None, claim.id
    source = claim.recorded
    path = _path(claim, source, options)
    result = store.read_json(path)
    rows = [_row(path, result, name) for name in (source.row, source.minus) if name]
    by_seed = [_by_seed(path, row, source.key) for row in rows]
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    if not seeds:
        raise UserError(f"{path}: no seed has {source.key} of {' and '.join(_names(source))}")
    columns = [[values[seed] for seed in seeds] for values in by_seed]
    values = columns[0] if len(columns) == 1 else list(map(sub, *columns))
    compared = (columns[0], columns[1]) if len(columns) == 2 else None
    shown = [
        f"{name}: {source.key} {', '.join(f'{row[seed]:.4g}' for seed in seeds)}"
        for name, row in zip(_names(source), by_seed, strict=True)
    ]
    noun = result.get("noun") or "samples"
    evaluated = f", {result['count']:,} {noun}" if result.get("count") else ""
    shown.append(
        f"recorded by `{result['command']}` on {result['date'][:10]}: {result.get('data', '')}, "
        f"{result.get('length', '')}{evaluated}"
    )
    shown += _power(values, compared, source.comparisons)
    return Outcome(
        values=tuple(values),
        exact=False,
        seeds=tuple(seeds),
        compared=compared,
        shown=tuple(shown),
        recipe=source.result,
        unsettled=_unsettled(source, values),
        environment=recorded_environment({**result["machine"], **result["versions"]}),
    )


def _path(claim: Claim, source: Recorded, options: Options) -> Path:
    """Return the file of the result, in the folder of results or else in ./results."""
    name = f"{source.result}.json"
    folders = dict.fromkeys((options.results, Path("results")))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    commands = " or ".join(f"`{command}`" for command in claim.commands[:1])
    raise UserError(
        f"{claim.id}: there is no {name} in {' or '.join(map(str, folders))}; "
        f"{commands} measures it, and its result.json is this file"
    )


def _row(path: Path, result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    rows: dict[str, Mapping[str, Any]] = {row["name"]: row for row in result.get("rows", ())}
    if name not in rows:
        raise UserError(f"{path}: there is no row {name!r} (rows: {', '.join(rows)})")
    return rows[name]


def _by_seed(path: Path, row: Mapping[str, Any], key: str) -> dict[int, float]:
    value = row.get(key)
    if not isinstance(value, Mapping):
        raise UserError(f"{path}, {row['name']}: there is no {key} by seed")
    pairs = zip(row["seeds"], value["seeds"], strict=True)
    return {seed: float(number) for seed, number in pairs if number is not None}


def _names(source: Recorded) -> list[str]:
    return [name for name in (source.row, source.minus) if name]


def _power(
    values: Sequence[float],
    compared: tuple[Sequence[float], Sequence[float]] | None,
    comparisons: int,
) -> list[str]:
    """Return the smallest difference that this number of seeds could have shown, as text."""
    interval: Interval | Difference | None
    if compared is None:
        interval = mean_interval(values, comparisons=comparisons)
    else:
        interval = difference(*compared, bounds=UNBOUNDED, comparisons=comparisons)
    if interval is None:
        return ["one seed: how far seeds differ is not known"] if len(values) == 1 else []
    half = (interval.high - interval.low) / 2
    seeds = f"{len(values)} seeds"
    if comparisons > 1:
        seeds += f", {comparisons} comparisons together"
    return [f"{seeds}: a mean is known to {half:.3g}; smaller differences are not found"]


def _unsettled(source: Recorded, values: Sequence[float]) -> str:
    if source.budget:
        return source.budget
    if len(values) == 1:
        return "one seed: chance unknown"
    if source.minus and not any(values):
        return "both have the same value with every seed"
    return ""
