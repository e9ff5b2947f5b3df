"""Attacks, ours and those of other libraries, on the same images with the same steps.

    pip install --requirement benchmarks/requirements.txt
    pip install --no-deps torchattacks==3.5.1
    PLUSX_DATA=... python benchmarks/attacks.py --weights resnet20.safetensors robust.safetensors

The weights are files for CIFAR-10, such as akamaster's ResNet-20 converted by `plusx convert`, and
that of the recipe cifar10-adversarial. Both sides attack the same test images, Linf, from one
random start: APGD of pyautoattack with 100 steps (APGD-T towards nine classes), PGD of torchattacks
with 50. Ours ends the search for a sample when it is fooled, which the others do not. Accuracies
are of all images, times of the first `--timed` ones. At 1/255 only networks are attacked that have
no accuracy left at 8/255, where every attack succeeds.

Writes results/benchmark_attacks.json. Exits with status 1 if a target is missed: the accuracies
differ by more than MAX_DIFFERENCE, or ours takes longer.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchattacks
from pyautoattack import AutoAttack
from timing import RESULTS, Estimate, in_turns, load, ratio, record
from torch import Tensor, nn

from plusx.attack import ATTACKS
from plusx.data.loader import Loader
from plusx.data.modality import Modality
from plusx.data.readers.open import open_data
from plusx.data.splits import stratified_order
from plusx.run import Run, load_run


MAX_DIFFERENCE = 0.005
FOOLED = 0.05  # an accuracy below which nearly every sample is fooled
STEPS, PGD_STEPS, TARGETS, BATCH = 100, 50, 9, 100


class Case(NamedTuple):
    """An attack, eps in 1/255, and the number of images at most."""

    attack: str
    level: int
    images: int


CASES = (
    Case("apgd-ce", 8, 1000),
    Case("apgd-t", 8, 60),
    Case("pgd", 8, 300),
    Case("apgd-ce", 1, 1000),
    Case("apgd-t", 1, 60),
    Case("pgd", 1, 300),
)


class OfPixels(nn.Module):
    """A network that takes pixels from 0 to 1."""

    def __init__(self, net: nn.Module, modality: Modality) -> None:
        super().__init__()
        self.net, self.modality = net, modality

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net(self.modality.from_pixels(pixels))
        return logits


def ours(net: nn.Module, case: Case, pixels: Tensor, labels: Tensor) -> Tensor:
    steps = PGD_STEPS if case.attack == "pgd" else STEPS
    attack = ATTACKS[case.attack](eps=case.level / 255, steps=steps)
    rng = torch.Generator().manual_seed(0)
    parts = zip(pixels.split(BATCH), labels.split(BATCH))
    return torch.cat([attack(net, *part, rng) for part in parts])


def theirs(net: nn.Module, case: Case, pixels: Tensor, labels: Tensor) -> Tensor:
    eps = case.level / 255
    if case.attack == "pgd":
        torch.manual_seed(0)
        pgd = torchattacks.PGD(net, eps=eps, alpha=2.5 * eps / PGD_STEPS, steps=PGD_STEPS)
        parts = zip(pixels.split(BATCH), labels.split(BATCH))
        return torch.cat([pgd(*part) for part in parts])
    attack = AutoAttack(net, attacks=[case.attack], version="custom", eps=eps, norm="Linf", seed=0)
    attack.verbose = False
    for part in (attack.apgd, attack.apgd_targeted):
        part.n_iter, part.n_restarts = STEPS, 1
    attack.apgd_targeted.n_target_classes = TARGETS
    perturbed = attack.run_standard_evaluation(pixels, labels, batch_size=BATCH)
    result: Tensor = perturbed[0] if isinstance(perturbed, tuple) else perturbed
    return result


def correct(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Which samples are predicted correctly."""
    with torch.no_grad():
        return torch.cat([net(part) for part in pixels.split(BATCH)]).argmax(1) == labels


def images(run: Run, count: int) -> tuple[Tensor, Tensor]:
    """The pixels and labels of this number of test images, equally many of each class."""
    dataset = open_data("cifar10", split="test").with_modality(run.preprocessing)
    chosen = np.sort(stratified_order(dataset.labels, 0)[:count]).tolist()
    with Loader(dataset.subset(chosen), split="all", batch_size=len(chosen)) as loader:
        (batch,) = loader.epoch(0)
    return run.preprocessing.to_pixels(batch.inputs), batch.known_targets


def measured(
    net: nn.Module, case: Case, pixels: Tensor, labels: Tensor, timed: int, rounds: int
) -> tuple[dict[str, Any], Estimate]:
    """Accuracies of both sides, and the ratio of their times."""
    mine, other = (
        correct(net, attack(net, case, pixels, labels), labels) for attack in (ours, theirs)
    )
    given = (net, case, pixels[:timed], labels[:timed])
    times = in_turns({"ours": lambda: ours(*given), "theirs": lambda: theirs(*given)}, rounds)
    row = {
        "peer": "torchattacks" if case.attack == "pgd" else "pyautoattack",
        "clean": float(correct(net, pixels, labels).float().mean()),
        "accuracy": float(mine.float().mean()),
        "accuracy_peer": float(other.float().mean()),
        "agreement": float((mine == other).float().mean()),
        "count": len(labels),
        "timed": len(given[3]),
        "seconds": float(np.median(times["ours"].processor)),
        "seconds_peer": float(np.median(times["theirs"].processor)),
    }
    return row, ratio(times["theirs"].processor, times["ours"].processor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=int, default=1000, help="at most, in every case")
    parser.add_argument("--timed", type=int, default=100)
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
        fooled = False
        for case in CASES:
            if case.level < 8 and not fooled:
                continue
            pixels, labels = images(run, min(case.images, arguments.images))
            name = f"{weights.stem}, {case.attack}, {case.level}/255"
            row, estimates[name] = measured(
                net, case, pixels, labels, arguments.timed, arguments.rounds
            )
            rows.append({"name": name, **row})
            fooled = fooled or row["accuracy"] < FOOLED
            print(rows[-1], flush=True)
    record(
        arguments.out,
        rows,
        estimates,
        recipe={"steps": STEPS, "pgd_steps": PGD_STEPS, "targets": TARGETS, "norm": "linf"},
        versions={name: version(name) for name in ("pyautoattack", "torchattacks")},
        load_before=before,
    )
    far = [row for row in rows if row["accuracy"] > row["accuracy_peer"] + MAX_DIFFERENCE]
    slow = [case for case, estimate in estimates.items() if estimate.value < 1]
    for row in far:
        print(f"{row['name']}: the accuracy is above the peer's", file=sys.stderr)
    for case in slow:
        print(f"{case}: ours takes longer", file=sys.stderr)
    return 1 if far or slow else 0


if __name__ == "__main__":
    sys.exit(main())
