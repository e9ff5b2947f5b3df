"""Measure the results of a recipe, and write them into results/ and into the recipe's header.

    python tools/measure.py RECIPE [KEY=VALUE ...] [--seeds 0 1 2] [--split test] [--work DIR]

RECIPE is the name of a recipe that comes with plusx. A recipe with a table [compare] or [study] is
run by `compare` or `study`, one with a table [tune] by `tune`, and one with a table [stream] by
`stream`, with every method or those of --methods. Each seed is a run under DIR (default:
runs/measured), which resumes from its last checkpoint; a finished run is not repeated. The value of
adversarial training is the accuracy under PGD. With `--split test`, or if the recipe has no
validation images, each run is evaluated on the test set once. `python tools/measure.py --header
RECIPE` rewrites the header from results/. Environment variables in overrides
('data.path=$PLUSX_DATA/faces') are expanded for the runs, but written unexpanded.
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
from plusx.errors import counted
from plusx.recipe import Recipe, load_recipe, to_toml
from plusx.report.metrics import METRICS, OF_CLASSES
from plusx.run import evaluate, load_run, train
from plusx.run.attacking import attack_run
from plusx.run.folder import now


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
RECIPES = ROOT / "src" / "plusx" / "recipes"
BEGIN, END = "# measured (tools/measure.py):", "# end of what was measured"
# the metric of adversarial training, by PGD with more steps than in training
ROBUST, PGD_STEPS = "robust_accuracy", 50
ATTACKED = 2000  # samples at most
VERSIONS = ("plusx", "python", "torch", "torchvision", "numpy", "pillow")
MACHINE = ("processor", "processor_flags", "instructions", "cores", "threads", "platform")


def measure(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    split: str,
    work: Path,
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the recipe with every seed; return the content of its file under results/."""
    recipe = load_recipe(name, [os.path.expandvars(override) for override in overrides])
    if recipe.tune is not None:
        return _search(name, recipe, overrides, work)
    if recipe.stream is not None:
        import streams

        return streams.measure(name, overrides, seeds, split, work, methods)
    if recipe.study is not None or recipe.compare is not None:
        return _several(name, recipe, overrides, split, work)
    split = "test" if recipe.data.validation == 0 else split
    runs = [_run(replace(recipe, seed=seed), work / f"{name}-seed{seed}", split) for seed in seeds]
    metrics = list(runs[0]["result"]["metrics"])
    under_attack: dict[str, Any] = {}
    if recipe.adversarial is not None:
        metrics = [ROBUST, *(name for name in metrics if name != ROBUST)]
        clean = [run["metrics"]["accuracy"] for run in runs]
        under_attack = {
            "clean": {"mean": mean(clean), "std": stdev(clean) if len(clean) > 1 else None},
            "attack": {
                "kind": "pgd",
                "steps": PGD_STEPS,
                "eps": recipe.adversarial.eps,
                "count": min(ATTACKED, runs[0]["metrics"]["count"]),
            },
        }
    key = metrics[0]
    values = [run["metrics"][key] for run in runs]
    environment = runs[0]["environment"]
    return {
        "name": name,
        "metric": f"{split} {METRICS[key].title}",
        "metrics": metrics,
        **under_attack,
        "noun": runs[0]["result"]["noun"],
        "value": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "seeds": list(seeds),
        "values": values,
        "count": runs[0]["metrics"]["count"],
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


def header(result: dict[str, Any]) -> list[str]:
    """The lines of a recipe's header, from its file under results/."""
    machine = result["machine"]
    where = machine["device_name"] if machine["device"] != "cpu" else machine["processor"]
    if result.get("kind") == "study":
        return _study_header(result, where)
    count = machine["threads"]
    threads = f", {count} thread{'' if count == 1 else 's'}" if machine["device"] == "cpu" else ""
    metric = METRICS[result.get("metrics", OF_CLASSES)[0]]
    if isinstance(result["value"], dict):
        lines_by_network = [
            f"{name} {metric.text(result['value'][name], result['spread'][name], decimals=2)}"
            for name in result["value"]
        ]
        lines = [f"{result['metric']}:", *(f"  {line}" for line in lines_by_network)]
        threads = f", {result['jobs']}"
    else:
        value = metric.text(result["value"], result["spread"], decimals=2)
        lines = [f"{result['metric']} {value}"]
    if "clean" in result:
        clean, attack = result["clean"], result["attack"]
        text = METRICS["accuracy"].text(clean["mean"], clean["std"], decimals=2)
        attacked = attack.get("count", result["count"])
        noun = result.get("noun", "image")
        part = f", {counted(attacked, noun)}" if attacked < result["count"] else ""
        lines[0] += f" (PGD of {attack['steps']} steps, eps {attack['eps']:.3g}{part})"
        lines.append(f"clean accuracy {text}")
    noun = result.get("noun", "image")
    per_run = "in all" if isinstance(result["value"], dict) else "a run"
    seconds = "" if result["seconds"] is None else f", {result['seconds']:.0f} s {per_run}"
    lines += [
        f"{_count(result['seeds'], 'seed')}, {counted(result['count'], noun)}{seconds}",
        f"{where}{threads}, torch {result['versions']['torch']}, {result['date'][:10]}",
        result["command"],
    ]
    return [BEGIN, *(f"#   {line}" for line in lines), END]


def _study_header(result: dict[str, Any], where: str) -> list[str]:
    lines = [
        *textwrap.wrap(result["finding"], 94, break_on_hyphens=False),
        f"{_count(result['rows'], 'row')}, {_count(result['seeds'], 'seed')}, {result['jobs']}",
        f"{where}, torch {result['versions']['torch']}, {result['date'][:10]}",
        result["command"],
    ]
    return [BEGIN, *(f"#   {line}" for line in lines), END]


def _count(items: Sequence[Any], name: str) -> str:
    return counted(len(items), name)


def with_header(text: str, lines: Sequence[str]) -> str:
    """A recipe's text, with these lines instead of those between the marks."""
    old = text.splitlines()
    if BEGIN in old and END in old:
        begin, end = old.index(BEGIN), old.index(END)
        new = [*old[:begin], *lines, *old[end + 1 :]]
    else:
        first_line = next(i for i, line in enumerate(old) if not line.startswith("#"))
        new = [*old[:first_line], "#", *lines, *old[first_line:]]
    return "\n".join(new) + "\n"


def write_header(name: str) -> None:
    """Write the header of a recipe from results/NAME.json."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    path = RECIPES / f"{name}.toml"
    path.write_text(with_header(path.read_text(encoding="utf-8"), header(result)), encoding="utf-8")


def _run(recipe: Recipe, folder: Path, split: str) -> dict[str, Any]:
    start = time.perf_counter()
    result = train(recipe, folder)
    seconds, timing = time.perf_counter() - start, folder / "seconds.json"
    if not timing.is_file():
        store.write_json(timing, {"seconds": seconds})
    metrics = result["validation"]
    if split == "test":
        test_metrics = folder / "test.json"
        if not test_metrics.is_file():
            store.write_json(test_metrics, evaluate(load_run(folder), split="test"))
        metrics = store.read_json(test_metrics)
    if recipe.adversarial is not None:
        attacked = folder / "attacked.json"
        if not attacked.is_file():
            store.write_json(attacked, _attacked(recipe, folder, split))
        metrics = {**metrics, ROBUST: store.read_json(attacked)["rows"][0]["accuracy"]}
    return {
        "result": result,
        "metrics": metrics,
        "seconds": store.read_json(timing)["seconds"],
        "environment": store.read_json(folder / "environment.json"),
    }


def _attacked(recipe: Recipe, folder: Path, split: str) -> dict[str, Any]:
    """Return samples of the split under PGD of many steps, with the threat of the recipe."""
    table = recipe.adversarial
    assert table is not None
    return attack_run(
        load_run(folder),
        split=split,
        kinds=["pgd"],
        norm=table.norm,
        eps=[table.eps],
        steps=PGD_STEPS,
        images=ATTACKED,
        checked=0,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    values_present = [value for value in values if value is not None]
    return mean(values_present) if values_present else None


def _several(
    name: str, recipe: Recipe, overrides: Sequence[str], split: str, work: Path
) -> dict[str, Any]:
    """A comparison or a study of many runs; its value is the first metric of the table."""
    from plusx.study.runner import compare, study

    assert split in ("validation", "test")
    split_arguments = ["--split", "test"] if split == "test" else []
    if recipe.study is not None:
        command = shlex.join(["plusx", "study", name, *overrides])
        result = study(recipe, work / name, command=command)
        keys = [c["key"] for c in result["columns"] if c["kind"] in ("share", "number")]
        spreads = [key for key in keys if any(isinstance(r.get(key), dict) for r in result["rows"])]
        key = title = (spreads or keys)[0]
    else:
        command = shlex.join(["plusx", "compare", name, *overrides, *split_arguments])
        result = compare(recipe, work / name, split=split, command=command)
        key = result["metrics"][0]
        title = f"{result['split']} {METRICS[key].title}"
    values = {row["name"]: row.get(key) for row in result["rows"]}
    first_run = next((work / name / "runs").iterdir())
    environment = store.read_json(first_run / "environment.json")
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


def _search(name: str, recipe: Recipe, overrides: Sequence[str], work: Path) -> dict[str, Any]:
    """A search; its values are those of default and best with the confirming seeds."""
    from plusx.study.tuning import tune

    command = shlex.join(["plusx", "tune", name, *overrides])
    result = tune(recipe, work / name, name=name, jobs=1, command=command)
    confirmation, key = result["confirmation"], result["metric"]
    assert confirmation is not None, "the default is the best: there is nothing to confirm"
    assert not confirmation["failed"], confirmation["failed"]
    environment = store.read_json(work / name / "trials" / "0" / "environment.json")
    return {
        **result,
        "recipe": to_toml(load_recipe(name, overrides)),
        "machine": {key: environment[key] for key in (*MACHINE, "device", "device_name")},
        "metrics": [key],
        "metric": f"validation {METRICS[key].title}",
        "value": {role: confirmation[role]["mean"] for role in ("default", "best")},
        "spread": {role: confirmation[role]["std"] for role in ("default", "best")},
        "seeds": confirmation["seeds"],
        "difference": confirmation["difference"],
        "jobs": f"{len(result['trials'])} trials, 1 run of 1 thread",
        "seconds": sum(row["seconds"] for row in result["trials"]),
    }


def _command(name: str, overrides: Sequence[str], seeds: Sequence[int], split: str) -> str:
    command = ["python", "tools/measure.py", name, *overrides, "--seeds", *map(str, seeds)]
    return shlex.join([*command, *(["--split", split] if split == "test" else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "measured")
    parser.add_argument("--methods", nargs="+", default=[], help="of a stream: class-replay ...")
    parser.add_argument("--header", action="store_true", help="only rewrite the header")
    args = parser.parse_args()
    if not args.header:
        result = measure(
            args.recipe, args.overrides, args.seeds, args.split, args.work, args.methods
        )
        RESULTS.mkdir(exist_ok=True)
        store.write_json(RESULTS / f"{args.recipe}.json", result)
    write_header(args.recipe)
    print("\n".join(header(json.loads((RESULTS / f"{args.recipe}.json").read_text()))))


if __name__ == "__main__":
    main()
