"""MixUp and CutMix, applied to augmented batches on the device.

The random numbers depend only on (seed, step), so that a resumed run mixes in the same way.
"""

from collections.abc import Callable

import numpy as np
import torch

from plusx.data.batch import Batch, class_shares
from plusx.data.rng import SampleRNG, permutation
from plusx.errors import UserError


# (batch, seed, step, number of classes) -> batch whose targets are class probabilities
Mix = Callable[[Batch, int, int, int], Batch]

# purpose of the random numbers here, distinct from those of an augmentation
_MIXING = 1 << 33


def mixup(alpha: float) -> Mix:
    """Return MixUp: x = l x_i + (1 - l) x_j, the same for targets, with l from Beta(alpha, alpha).

    Zhang et al. 2018, equation 1; one l per batch, as in the authors' code.
    """
    _check(alpha)

    def mixed(batch: Batch, seed: int, step: int, num_classes: int) -> Batch:
        fraction = _fraction(alpha, seed, step)
        others = _others(batch, seed, step)
        inputs = batch.inputs.lerp(batch.inputs[others], 1 - fraction)
        targets = class_shares(batch.known_targets, num_classes)
        return Batch(inputs, targets.lerp(targets[others], 1 - fraction))

    return mixed


def cutmix(alpha: float) -> Mix:
    """Return CutMix: a window of 1 - l of the area, and of the target, is from another image.

    Yun et al. 2019, equations 1 and 2: the centre of the window is uniform over the image, it is
    clipped at the border, and l is corrected for its area. l is drawn as in mixup.
    """
    _check(alpha)

    def mixed(batch: Batch, seed: int, step: int, num_classes: int) -> Batch:
        sides = batch.inputs.shape[2:]
        cut = (1 - _fraction(alpha, seed, step)) ** (1 / len(sides)) if len(sides) else 0.0
        window: list[slice] = [slice(None), slice(None)]
        area = 1.0
        for number, side in enumerate(sides):
            centre = _rng(seed, step).below(side, number)
            half = int(side * cut) // 2
            first, last = max(0, centre - half), min(side, centre + half)
            window.append(slice(first, last))
            area *= (last - first) / side
        others = _others(batch, seed, step)
        inputs = batch.inputs.clone()
        inputs[tuple(window)] = batch.inputs[others][tuple(window)]
        targets = class_shares(batch.known_targets, num_classes)
        return Batch(inputs, targets.lerp(targets[others], area))

    return mixed


def _check(alpha: float) -> None:
    if not 0 < alpha <= 100:
        raise UserError(f"alpha = {alpha}: above 0, at most 100")


def _rng(seed: int, step: int) -> SampleRNG:
    return SampleRNG.of(seed, step, 0).at(_MIXING)


def _fraction(alpha: float, seed: int, step: int) -> float:
    generator = np.random.Generator(np.random.Philox(key=_rng(seed, step).bits(99)))
    return float(generator.beta(alpha, alpha))


def _others(batch: Batch, seed: int, step: int) -> torch.Tensor:
    """Return for each sample the index of the one it is mixed with, (n,)."""
    order = permutation(len(batch), seed ^ _MIXING, step)
    return torch.from_numpy(order).to(batch.inputs.device)
