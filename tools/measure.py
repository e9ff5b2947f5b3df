"""Measure what a recipe reaches, and write it into results/ and the recipe's header.

    python tools/measure.py RECIPE [KEY=VALUE ...] [--seeds 0 1 2] [--split test] [--work DIR]

RECIPE is the name of one that comes with plusx. One with a table [compare] is compared, one with
a table [study] is studied. Each seed is a run under DIR (default: runs/measured), which resumes
from its last checkpoint; a finished run is not repeated. With `--split test`, and where a recipe
keeps no validation images back, each run is evaluated on the test set once. `python
tools/measure.py --header RECIPE` writes the header again from results/. Variables in overrides
('data.path=$PLUSX_DATA/faces') are filled in for the runs, and kept as they are in what is written.
"""

import argparse
import json
import os
import shlex
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plusx import store
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.report.metrics import metric
from plusx.run import evaluate, load_run, train
from plusx.run.folder import now


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RECIPES = ROOT / "src" / "plusx" / "recipes"
BEGIN, END = "# measured (tools/measure.py):", "# end of what was measured"
VERSIONS = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
MACHINE = ("processor", "processor_flags", "instructions", "cores", "threads", "platform")


def measure(
    name: str, overrides: Sequence[str], seeds: Sequence[int], split: str, work: Path
) -> dict[str, Any]:
    """Train the recipe once a seed; the content of the file under results/."""
    recipe = load_recipe(name, [os.path.expandvars(each) for each in overrides])
    if recipe.study is not None or recipe.compare is not None:
        return _several(name, recipe, overrides, split, work)
    split = "test" if recipe.data.validation == 0 else split
    runs = [_run(replace(recipe, seed=seed), work / f"{name}-seed{seed}", split) for seed in seeds]
    key = runs[0]["result"]["metrics"][0]
    found = [run["figures"][key] for run in runs]
    environment = runs[0]["environment"]
    return {
        "name": name,
        "metric": f"{split} {metric(key).title}",
        "value": mean(found),
        "spread": stdev(found) if len(found) > 1 else None,
        "seeds": list(seeds),
        "values": found,
        "count": runs[0]["figures"]["count"],
        "train_error": _mean([run["result"]["train_error"] for run in runs]),
        "network": runs[0]["result"]["name"],
        "parameters": runs[0]["result"]["parameters"],
        "steps": runs[0]["result"]["steps"],
        "seconds": mean(run["seconds"] for run in runs),
        "command": _command(name, overrides, seeds, split),
        "recipe": to_toml(load_recipe(name, overrides)),
        "versions": {key: environment[key] for key in VERSIONS},
        "machine": {key: environment[key] for key in (*MACHINE, "device", "device_name")},
        "date": now(),
    }


def header(found: dict[str, Any]) -> list[str]:
    """The lines of a recipe's header, from its file under results/."""
    machine = found["machine"]
    where = machine["device_name"] if machine["device"] != "cpu" else machine["processor"]
    if found.get("kind") == "study":
        return _study_header(found, where)
    count = machine["threads"]
    threads = f", {count} thread{'' if count == 1 else 's'}" if machine["device"] == "cpu" else ""
    if isinstance(found["value"], dict):
        said = [
            f"{name} {_percent(found['value'][name], found['spread'][name])}"
            for name in found["value"]
        ]
        lines = [f"{found['metric']}:", *(f"  {each}" for each in said)]
        threads = f", {found['jobs']}"
    else:
        lines = [f"{found['metric']} {_percent(found['value'], found['spread'])}"]
    count = len(found["seeds"])
    each = "in all" if isinstance(found["value"], dict) else "a run"
    seconds = "" if found["seconds"] is None else f", {found['seconds']:.0f} s {each}"
    lines += [
        f"{count} seed{'' if count == 1 else 's'}, {found['count']:,} images{seconds}",
        f"{where}{threads}, torch {found['versions']['torch']}, {found['date'][:10]}",
        found["command"],
    ]
    return [BEGIN, *(f"#   {line}" for line in lines), END]


def _study_header(found: dict[str, Any], where: str) -> list[str]:
    lines = [
        *textwrap.wrap(found["finding"], 94, break_on_hyphens=False),
        f"{_counted(found['rows'], 'row')}, {_counted(found['seeds'], 'seed')}, {found['jobs']}",
        f"{where}, torch {found['versions']['torch']}, {found['date'][:10]}",
        found["command"],
    ]
    return [BEGIN, *(f"#   {line}" for line in lines), END]


def _counted(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def with_header(text: str, lines: Sequence[str]) -> str:
    """A recipe's text with these lines in place of those between the marks."""
    old = text.splitlines()
    if BEGIN in old and END in old:
        begin, end = old.index(BEGIN), old.index(END)
        new = [*old[:begin], *lines, *old[end + 1 :]]
    else:
        place = next(i for i, line in enumerate(old) if not line.startswith("#"))
        new = [*old[:place], "#", *lines, *old[place:]]
    return "\n".join(new) + "\n"


def write_header(name: str) -> None:
    """Put what results/NAME.json says into the recipe."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    path = RECIPES / f"{name}.toml"
    path.write_text(with_header(path.read_text(encoding="utf-8"), header(found)), encoding="utf-8")


def _run(recipe: Recipe, folder: Path, split: str) -> dict[str, Any]:
    begun = time.perf_counter()
    result = train(recipe, folder)
    seconds, noted = time.perf_counter() - begun, folder / "seconds.json"
    if not noted.is_file():
        store.write_json(noted, {"seconds": seconds})
    figures = result["validation"]
    if split == "test":
        tested = folder / "test.json"
        if not tested.is_file():
            store.write_json(tested, evaluate(load_run(folder), split="test"))
        figures = store.read_json(tested)
    return {
        "result": result,
        "figures": figures,
        "seconds": store.read_json(noted)["seconds"],
        "environment": store.read_json(folder / "environment.json"),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _several(
    name: str, recipe: Recipe, overrides: Sequence[str], split: str, work: Path
) -> dict[str, Any]:
    """A comparison or a study of many runs; its value is the first metric of the table."""
    from plusx.study.runner import compare, study

    assert split in ("validation", "test")
    tested = ["--split", "test"] if split == "test" else []
    if recipe.study is not None:
        command = shlex.join(["plusx", "study", name, *overrides])
        result = study(recipe, work / name, command=command)
        keys = [c["key"] for c in result["columns"] if c["kind"] in ("share", "number")]
        spreads = [key for key in keys if any(isinstance(r.get(key), dict) for r in result["rows"])]
        key = title = (spreads or keys)[0]
    else:
        command = shlex.join(["plusx", "compare", name, *overrides, *tested])
        result = compare(recipe, work / name, split=split, command=command)
        key = result["metrics"][0]
        title = f"{result['split']} {metric(key).title}"
    values = {row["name"]: row.get(key) for row in result["rows"]}
    one_run = next((work / name / "runs").iterdir())
    environment = store.read_json(one_run / "environment.json")
    return {
        **result,
        "command": command,
        "recipe": to_toml(load_recipe(name, overrides)),
        "machine": {key: environment[key] for key in (*MACHINE, "device", "device_name")},
        "name": name,
        "metric": title,
        "value": {row: v["mean"] if isinstance(v, dict) else v for row, v in values.items()},
        "spread": {row: v["std"] if isinstance(v, dict) else None for row, v in values.items()},
    }


def _command(name: str, overrides: Sequence[str], seeds: Sequence[int], split: str) -> str:
    said = ["python", "tools/measure.py", name, *overrides, "--seeds", *map(str, seeds)]
    return shlex.join([*said, *(["--split", split] if split == "test" else [])])


def _percent(value: float, spread: float | None) -> str:
    return f"{100 * value:.2f}{'' if spread is None else f' ± {100 * spread:.2f}'} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "measured")
    parser.add_argument("--header", action="store_true", help="only write the header again")
    said = parser.parse_args()
    if not said.header:
        found = measure(said.recipe, said.overrides, said.seeds, said.split, said.work)
        RESULTS.mkdir(exist_ok=True)
        store.write_json(RESULTS / f"{said.recipe}.json", found)
    write_header(said.recipe)
    print("\n".join(header(json.loads((RESULTS / f"{said.recipe}.json").read_text()))))


if __name__ == "__main__":
    main()
