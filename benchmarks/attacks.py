"""Attacks, ours and pyautoattack's, on the same images with the same steps: accuracy and time.

    pip install --requirement benchmarks/requirements.txt
    PLUSX_DATA=... python benchmarks/attacks.py --weights resnet20.safetensors

The weights are files for CIFAR-10, such as akamaster's ResNet-20 converted by `plusx convert`.
Both attack the same test images, Linf, with 100 steps from one start, APGD-T towards nine classes.
Ours ends the search for a sample when it is fooled, which pyautoattack does not.

Writes results/benchmark_attacks.json. Exits with status 1 if a target is missed: the accuracies
differ by more than MAX_DIFFERENCE, or ours takes longer.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyautoattack import AutoAttack
from timing import RESULTS, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn

from plusx.attack import ATTACKS
from plusx.data.loader import Loader
from plusx.data.modality import Modality
from plusx.data.readers.open import open_data
from plusx.data.splits import stratified_order
from plusx.run import load_run


MAX_DIFFERENCE = 0.005
STEPS, TARGETS, BATCH = 100, 9, 100
CASES = (("apgd-ce", 8), ("apgd-t", 8), ("apgd-ce", 1), ("apgd-t", 1))  # eps in 1/255


class OfPixels(nn.Module):
    """A network that takes pixels from 0 to 1."""

    def __init__(self, net: nn.Module, modality: Modality) -> None:
        super().__init__()
        self.net, self.modality = net, modality

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net(self.modality.from_pixels(pixels))
        return logits


def ours(net: nn.Module, name: str, eps: float, pixels: Tensor, labels: Tensor) -> Tensor:
    attack = ATTACKS[name](eps=eps, steps=STEPS)
    rng = torch.Generator().manual_seed(0)
    parts = zip(pixels.split(BATCH), labels.split(BATCH))
    return torch.cat([attack(net, *part, rng) for part in parts])


def theirs(net: nn.Module, name: str, eps: float, pixels: Tensor, labels: Tensor) -> Tensor:
    attack = AutoAttack(net, attacks=[name], version="custom", eps=eps, norm="Linf", seed=0)
    attack.verbose = False
    for part in (attack.apgd, attack.apgd_targeted):
        part.n_iter, part.n_restarts = STEPS, 1
    attack.apgd_targeted.n_target_classes = TARGETS
    perturbed = attack.run_standard_evaluation(pixels, labels, batch_size=BATCH)
    result: Tensor = perturbed[0] if isinstance(perturbed, tuple) else perturbed
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmark_attacks.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = load()
    rows: list[dict[str, Any]] = []
    estimates: dict[str, Estimate] = {}
    for weights in arguments.weights:
        run = load_run(weights)
        net = OfPixels(run.net, run.preprocessing).eval()
        dataset = open_data("cifar10", split="test").with_modality(run.preprocessing)
        chosen = np.sort(stratified_order(dataset.labels, 0)[: arguments.images]).tolist()
        with Loader(dataset.subset(chosen), split="all", batch_size=len(chosen)) as loader:
            (batch,) = loader.epoch(0)
        pixels, labels = run.preprocessing.to_pixels(batch.inputs), batch.known_targets

        def correct(perturbed: Tensor, net: nn.Module = net, labels: Tensor = labels) -> Tensor:
            with torch.no_grad():
                return torch.cat([net(part) for part in perturbed.split(BATCH)]).argmax(1) == labels

        for name, levels in CASES:
            given = (net, name, levels / 255, pixels, labels)
            perturbed: dict[str, Tensor] = {}

            def attack(side: str, given: Any = given, perturbed: Any = perturbed) -> None:
                perturbed[side] = (ours if side == "ours" else theirs)(*given)

            times = in_turns(
                {"ours": lambda a=attack: a("ours"), "pyautoattack": lambda a=attack: a("theirs")},
                arguments.rounds,
            )
            mine, other = correct(perturbed["ours"]), correct(perturbed["theirs"])
            case = f"{weights.stem}, {name}, {levels}/255"
            estimates[case] = ratio(times["pyautoattack"].processor, times["ours"].processor)
            rows.append(
                {
                    "name": case,
                    "clean": float(correct(pixels).float().mean()),
                    "accuracy": float(mine.float().mean()),
                    "accuracy_pyautoattack": float(other.float().mean()),
                    "agreement": float((mine == other).float().mean()),
                    "count": len(labels),
                    "seconds": float(np.median(times["ours"].processor)),
                    "seconds_pyautoattack": float(np.median(times["pyautoattack"].processor)),
                }
            )
            print(rows[-1], flush=True)
    record(
        arguments.out,
        rows,
        estimates,
        recipe={"steps": STEPS, "targets": TARGETS, "images": arguments.images, "norm": "linf"},
        versions={"pyautoattack": version("pyautoattack")},
        load_before=before,
    )
    far = [row for row in rows if row["accuracy"] > row["accuracy_pyautoattack"] + MAX_DIFFERENCE]
    slow = [case for case, estimate in estimates.items() if estimate.value < 1]
    for row in far:
        print(f"{row['name']}: the accuracy is above pyautoattack's", file=sys.stderr)
    for case in slow:
        print(f"{case}: ours takes longer", file=sys.stderr)
    return 1 if far or slow else 0


if __name__ == "__main__":
    sys.exit(main())
