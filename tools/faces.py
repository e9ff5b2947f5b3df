"""Measure faces-verify on several folds of people, and galleries of the people of each fold.

    python tools/faces.py [--folds 3] [--seeds 0 1 2] [--halves 20] [--work DIR]

The people of ORL are split into folds. Each fold is the test set of runs, with every seed and for
the residual network and its plain twin, which are trained on the other people. The equal error rate
is the mean over folds and seeds; its interval is a bootstrap over the people of each fold, because
pairs of images of one person are not independent. For galleries, half of the people of a fold,
drawn at random, are enrolled with half of their images and tried with the other half, and the other
people are strangers; this is repeated with other halves, the same ones for every run of a fold.
Writes results/faces-folds.json. Runs resume; finished ones are not repeated.
"""

import argparse
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from measure import MACHINE, RESULTS, VERSIONS

from plusx import store
from plusx.data.loader import batches
from plusx.metrics.verification import FAR, Ranking, bootstrap, pairs_of
from plusx.recipe import load_recipe, to_toml
from plusx.run import load_run, train
from plusx.run.evaluation import own_split, tta_of
from plusx.run.folder import now
from plusx.run.gallery import enroll, open_gallery, verify
from plusx.run.predictor import Predictor
from plusx.statistics import LEVEL


RECIPE = "faces-verify"
NETWORKS = ("resnet20", "plain20")
PERCENTILES = (50 * (1 - LEVEL), 50 * (1 + LEVEL))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the content of results/faces-folds.json."""
    faces = Path(os.environ["PLUSX_DATA"]) / "orl"
    people = sorted(path.name for path in faces.iterdir() if path.is_dir())
    folds = [people[number :: args.folds] for number in range(args.folds)]
    tried = {
        (network, fold, seed): _tried(args, faces, network, fold, folds[fold], seed)
        for network in NETWORKS
        for fold in range(args.folds)
        for seed in args.seeds
    }
    rows = [_row(args, network, tried) for network in NETWORKS]
    first = next(iter(tried.values()))
    return {
        "name": "faces-folds",
        "metric": "test equal error rate, mean over folds of people",
        "value": {row["network"]: row["equal_error_rate"]["value"] for row in rows},
        "spread": {row["network"]: _width(row["equal_error_rate"]) for row in rows},
        "seeds": args.seeds,
        "folds": folds,
        "people": len(people),
        "rows": rows,
        "difference": _difference(args, tried),
        "command": _command(args),
        "recipe": to_toml(load_recipe(RECIPE)),
        "versions": {key: first["environment"][key] for key in VERSIONS},
        "machine": {key: first["environment"][key] for key in (*MACHINE, "device", "device_name")},
        "date": now(),
    }


def _tried(
    args: argparse.Namespace, faces: Path, network: str, fold: int, names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Train one network without the people of a fold, and evaluate it on them."""
    folder = args.work / RECIPE / f"{network}-fold{fold}-seed{seed}"
    pattern = "|".join(map(re.escape, names))
    overrides = [f"data.path={faces}", f"data.test={pattern}", f"net.base={network}"]
    train(load_recipe(RECIPE, [*overrides, f"seed={seed}"]), folder)
    galleries = _once(
        folder / f"galleries-{args.halves}.json",
        lambda: [_gallery(folder, faces, *half) for half in _halves(names, args.halves, fold)],
    )
    return {
        **_once(folder / "fold.json", lambda: _evaluated(folder)),
        "galleries": galleries,
        "environment": store.read_json(folder / "environment.json"),
    }


def _once(file: Path, compute: Callable[[], Any]) -> Any:
    if not file.is_file():
        store.write_json(file, compute())
    return store.read_json(file)


def _evaluated(folder: Path) -> dict[str, Any]:
    """Return the error rates of a run on its test people, and those of bootstrap samples."""
    run = load_run(folder)
    dataset = own_split(run, None, "test")
    assert dataset is not None
    predictor = Predictor(run, tta=tta_of(run, None))
    parts = []
    with torch.inference_mode():
        for batch in batches(dataset, split="all", batch_size=64):
            tensors = predictor.task.predict(batch).tensors()
            parts.append((tensors["vectors"].double().numpy(), batch.known_targets.numpy()))
    vectors, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    genuine, impostor = pairs_of(unit, labels)
    rates = Ranking(genuine.scores, impostor.scores).rates()
    errors, accepts = bootstrap(genuine, impostor, FAR)
    return {
        "equal_error_rate": rates.equal_error(),
        "true_accept_rate": rates.at(FAR)[1],
        "samples": {"equal_error_rate": errors, "true_accept_rate": accepts},
    }


def _halves(names: Sequence[str], count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Return random halves of the people: those who are enrolled, and strangers."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(names).tolist() for _ in range(count)]
    middle = len(names) // 2
    return [(order[:middle], order[middle:]) for order in orders]


def _gallery(
    folder: Path, faces: Path, enrolled: Sequence[str], strangers: Sequence[str]
) -> dict[str, int]:
    """Return how many images of enrolled people and of strangers are accepted, of how many."""
    with tempfile.TemporaryDirectory() as work:
        for name in enrolled:
            (Path(work) / "people" / name).mkdir(parents=True)
            for image in _images(faces, name)[::2]:
                shutil.copy(image, Path(work) / "people" / name)
        enroll(load_run(folder), Path(work) / "people", Path(work) / "gallery")
        gallery = open_gallery(Path(work) / "gallery")
        tried = [image for name in enrolled for image in _images(faces, name)[1::2]]
        others = [image for name in strangers for image in _images(faces, name)]
        genuine, impostors = (verify(gallery, files)["answers"] for files in (tried, others))
    return {
        "genuine": len(genuine),
        "accepted": sum(row["person"] == Path(row["path"]).parent.name for row in genuine),
        "strangers": len(impostors),
        "false_accepts": sum(row["person"] is not None for row in impostors),
    }


def _images(faces: Path, name: str) -> list[Path]:
    return sorted((faces / name).iterdir())


def _row(
    args: argparse.Namespace, network: str, tried: dict[tuple[str, int, int], dict[str, Any]]
) -> dict[str, Any]:
    own = {key[1:]: value for key, value in tried.items() if key[0] == network}
    galleries = [gallery for value in own.values() for gallery in value["galleries"]]
    sums = {key: sum(gallery[key] for gallery in galleries) for key in galleries[0]}
    row: dict[str, Any] = {"network": network}
    for metric in ("equal_error_rate", "true_accept_rate"):
        values = [
            mean(own[fold, seed][metric] for seed in args.seeds) for fold in range(args.folds)
        ]
        low, high = np.percentile(_samples(args, own, metric), PERCENTILES)
        row[metric] = {
            "value": mean(values),
            "low": float(low),
            "high": float(high),
            "folds": values,
        }
    row["gallery"] = {
        **sums,
        "galleries": len(galleries),
        "accepted_rate": sums["accepted"] / sums["genuine"],
        "false_accept_rate": sums["false_accepts"] / sums["strangers"],
        "worst": {
            "accepted_rate": min(g["accepted"] / g["genuine"] for g in galleries),
            "false_accept_rate": max(g["false_accepts"] / g["strangers"] for g in galleries),
        },
    }
    return row


def _samples(
    args: argparse.Namespace, own: dict[tuple[int, int], dict[str, Any]], metric: str
) -> np.ndarray:
    """Return means over folds and seeds for samples of people. A sample has the same people with
    every seed; folds are sampled independently."""
    rng = np.random.default_rng(0)
    means = []
    for fold in range(args.folds):
        samples = [own[fold, seed]["samples"][metric] for seed in args.seeds]
        means.append(rng.permutation(np.mean(samples, axis=0)))
    result: np.ndarray = np.mean(means, axis=0)
    return result


def _difference(
    args: argparse.Namespace, tried: dict[tuple[str, int, int], dict[str, Any]]
) -> dict[str, float]:
    """Return the equal error rate of the residual network minus that of its plain twin."""
    samples, values = [], []
    for network in NETWORKS:
        own = {key[1:]: value for key, value in tried.items() if key[0] == network}
        samples.append(_samples(args, own, "equal_error_rate"))
        values.append(mean(value["equal_error_rate"] for value in own.values()))
    low, high = np.percentile(samples[0] - samples[1], PERCENTILES)
    return {"difference": values[0] - values[1], "low": float(low), "high": float(high)}


def _command(args: argparse.Namespace) -> str:
    command = ["python", "tools/faces.py", "--folds", str(args.folds)]
    command += ["--seeds", *map(str, args.seeds), "--halves", str(args.halves)]
    return shlex.join(command)


def _width(value: dict[str, float]) -> float:
    """Return half of an interval."""
    return (value["high"] - value["low"]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--halves", type=int, default=20)
    parser.add_argument("--work", type=Path, default=RESULTS.parent / "runs" / "measured")
    args = parser.parse_args()
    store.write_json(RESULTS / "faces-folds.json", measure(args))


if __name__ == "__main__":
    main()
