"""Measure self-supervised learning: probes of several methods, and fine-tuning with few labels.

    python tools/pretraining.py RECIPE [--methods simclr byol ...] [--seeds 0 1 2] [--split test]
        [--labels 0.01 0.1 1.0] [--label-seeds 0 1 2 3 4] [--steps 200] [--work DIR]

Every method pretrains the recipe with every seed. A linear probe and nearest neighbours are
evaluated on the split, beside the network before training. The first method is also fine-tuned, and
the same network trained from scratch, with the same steps on each fraction of the labels, with or
without augmentation: what is better on the validation images, for each of the two. Writes
results/RECIPE.json and the recipe's header. Runs resume; finished evaluations are not repeated, so
that the test images are used once for each run.
"""

import argparse
import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from measure import MACHINE, RESULTS, VERSIONS, write_header

from plusx import store
from plusx.recipe import load_recipe, to_toml
from plusx.run import evaluate, load_run, train
from plusx.run.folder import now
from plusx.run.probing import probe
from plusx.statistics import mean_interval, spread


PROBES = ("linear", "neighbours")
# of the training images with labels: as in the recipe, or none
AUGMENTATIONS: dict[str, tuple[str, ...]] = {"recipe": (), "none": ("data.augment=",)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the content of the file under results/."""
    rows = [_row(args, method) for method in args.methods]
    random = _random(rows)
    for row in rows:
        for name in PROBES:
            row[name]["over_random"] = _difference(row[name]["seeds"], random[name]["seeds"])
    first = args.work / args.recipe / f"{args.methods[0]}-seed{args.seeds[0]}"
    environment = store.read_json(first / "environment.json")
    result = store.read_json(first / "result.json")
    return {
        "name": args.recipe,
        "metric": f"{args.split} accuracy of a linear probe",
        "metrics": ["accuracy"],
        "value": {row["method"]: row["linear"]["mean"] for row in rows}
        | {"before training": random["linear"]["mean"]},
        "spread": {row["method"]: row["linear"]["std"] for row in rows}
        | {"before training": random["linear"]["std"]},
        "seeds": args.seeds,
        "split": args.split,
        "count": rows[0]["count"],
        "noun": result["noun"],
        "rows": rows,
        "random": random,
        "labels": [_labels(args, fraction) for fraction in args.labels],
        "network": result["name"],
        "parameters": result["parameters"],
        "steps": result["steps"],
        "seconds": sum(row["seconds"] for row in rows),
        "jobs": "1 run at a time, 1 thread",
        "command": _command(args),
        "recipe": to_toml(load_recipe(args.recipe)),
        "versions": {key: environment[key] for key in VERSIONS},
        "machine": {key: environment[key] for key in (*MACHINE, "device", "device_name")},
        "date": now(),
    }


def _row(args: argparse.Namespace, method: str) -> dict[str, Any]:
    """Pretrain by a method with every seed, and probe the embeddings."""
    probes, seconds = [], 0.0
    for seed in args.seeds:
        folder = args.work / args.recipe / f"{method}-seed{seed}"
        train(load_recipe(args.recipe, [f"method.kind={method}", f"seed={seed}"]), folder)
        probes.append(_once(folder / f"probe-{args.split}.json", lambda: _probe(args, folder)))  # noqa: B023
        seconds += _seconds(folder)
    return {
        "method": method,
        "count": probes[0]["count"],
        **{name: spread([p[name]["accuracy"] for p in probes]) for name in PROBES},
        "random": {n: [p["random"][n]["accuracy"] for p in probes] for n in PROBES},
        "clusters": spread([p["clusters"]["accuracy"] for p in probes]),
        "seconds": seconds,
    }


def _probe(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return probe(load_run(folder), split=args.split)


def _random(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the probes before training, which are the same for all methods."""
    assert all(row["random"] == rows[0]["random"] for row in rows)
    return {name: spread(rows[0]["random"][name]) for name in PROBES}


def _labels(args: argparse.Namespace, fraction: float) -> dict[str, Any]:
    """Return accuracies of the pretrained network, fine-tuned, and of one from scratch, each with
    the augmentation that is better for it on the validation images."""
    accuracies: dict[str, list[float]] = {}
    chosen: dict[str, str] = {}
    for start in ("pretrained", "scratch"):
        means = {
            name: mean(
                _accuracy(args, start, fraction, name, seed, "validation") for seed in args.seeds
            )
            for name in AUGMENTATIONS
        }
        chosen[start] = max(means, key=lambda name: means[name])
        accuracies[start] = [
            _accuracy(args, start, fraction, chosen[start], seed, args.split)
            for seed in args.label_seeds or args.seeds
        ]
    return {
        "fraction": fraction,
        "steps": args.steps,
        "augment": chosen,
        "seeds": args.label_seeds or args.seeds,
        **{start: spread(values) for start, values in accuracies.items()},
        **_difference(accuracies["pretrained"], accuracies["scratch"]),
    }


def _accuracy(
    args: argparse.Namespace, start: str, fraction: float, augment: str, seed: int, split: str
) -> float:
    """Return the accuracy of the network after training on this fraction of the labels."""
    weights = ""
    if start == "pretrained":
        pretrained = args.work / args.recipe / f"{args.methods[0]}-seed{seed}"
        overrides = [f"method.kind={args.methods[0]}", f"seed={seed}"]
        train(load_recipe(args.recipe, overrides), pretrained)
        weights = str(pretrained)
    folder = args.work / args.recipe / f"{start}-{fraction:g}-augment-{augment}-seed{seed}"
    overrides = [
        *("task.kind=classify", "method=default", f"seed={seed}", f"net.weights={weights}"),
        *(f"steps={args.steps}", "evaluate.every=0", *_fraction(args, fraction)),
        *AUGMENTATIONS[augment],
    ]
    train(load_recipe(args.recipe, overrides), folder)
    metrics = _once(folder / f"{split}.json", lambda: evaluate(load_run(folder), split=split))
    return float(metrics["accuracy"])


def _fraction(args: argparse.Namespace, fraction: float) -> list[str]:
    """Return the override for a fraction of the recipe's training images."""
    if fraction == 1:
        return []
    count = load_recipe(args.recipe).data.train
    value = fraction if not isinstance(count, int) else max(1, round(fraction * count))
    return [f"data.train={value}"]


def _difference(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Return a mean difference over seeds with its interval: of pairs with the same seed."""
    gains = [a - b for a, b in zip(first, second, strict=True)]
    interval = mean_interval(gains, bounds=(-1.0, 1.0))
    low, high = (None, None) if interval is None else interval
    return {"difference": mean(gains), "low": low, "high": high}


def _once(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.is_file():
        store.write_json(file, compute())
    values: dict[str, Any] = store.read_json(file)
    return values


def _seconds(folder: Path) -> float:
    """Return the seconds of training and evaluation in the run's timing.jsonl."""
    lines = (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("seconds", 0.0) for line in lines)


def _command(args: argparse.Namespace) -> str:
    command = ["python", "tools/pretraining.py", args.recipe, "--methods", *args.methods]
    command += ["--seeds", *map(str, args.seeds), "--split", args.split]
    command += ["--labels", *map(str, args.labels)]
    if args.label_seeds:
        command += ["--label-seeds", *map(str, args.label_seeds)]
    command += ["--steps", str(args.steps)]
    return shlex.join(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("recipe")
    parser.add_argument("--methods", nargs="+", default=["simclr", "byol", "barlow", "supcon"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--labels", nargs="*", type=float, default=[0.01, 0.1, 1.0])
    parser.add_argument("--label-seeds", nargs="+", type=int, help="default: --seeds")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--work", type=Path, default=RESULTS.parent / "runs" / "measured")
    args = parser.parse_args()
    start = time.perf_counter()
    store.write_json(RESULTS / f"{args.recipe}.json", measure(args))
    write_header(args.recipe)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
