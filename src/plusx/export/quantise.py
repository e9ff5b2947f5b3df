"""Static quantisation to eight bits, with its choices made on images and recorded.

Weights are int8 with a scale for each output channel, activations uint8 (Jacob et al. 2018). Where
a processor has no instruction that adds four products in 32 bits (VNNI and its like), the sum of
two products of full range saturates in 16; weights have 7 bits for those.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.export.calibrate import METHODS, histograms
from plusx.export.eight_bits import in_eight_bits, weighted_nodes
from plusx.export.session import OnnxNetwork


LEAST = 16  # images to calibrate with
ENOUGH = 128
GOAL = 0.99  # of the classes told on held-out images: below it, the ends stay in float32 if better

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A way to quantise, and what became of the answers for the held-out images."""

    calibration: str
    float_layers: tuple[str, ...]
    error: float  # squared error of the logits over their squared deviation from their mean
    agreement: float  # share of images for which the best class is the same


@dataclass(frozen=True)
class Quantised:
    """The model in eight bits, and how it was chosen."""

    content: bytes
    full_range: bool
    images: int
    held: int
    chosen: Trial
    trials: tuple[Trial, ...]

    def to_dict(self) -> dict[str, Any]:
        """Without the content."""
        return {
            "weights": "int8, a scale for each channel" + ("" if self.full_range else ", 7 bits"),
            "activations": "uint8",
            "full_range": self.full_range,
            "calibration": self.chosen.calibration,
            "float_layers": list(self.chosen.float_layers),
            "images": self.images,
            "held": self.held,
            "trials": [asdict(each) for each in self.trials],
        }


def quantise(
    content: bytes, images: Tensor, held: Tensor, full_range: bool, tell: Tell
) -> Quantised:
    """Quantise a float32 model from `to_onnx`.

    `images` (m, ...) give the ranges of what runs through the network; `held` (h, ...), other ones,
    decide how ranges are taken from what was seen: by the least error of the logits. Where fewer
    than GOAL of the classes stay, leaving the first and the last layer in float32 is tried too.
    UserError: fewer than LEAST images.
    """
    if len(images) < LEAST:
        raise UserError(
            f"{len(images)} images to calibrate with: at least {LEAST} are needed, "
            f"{ENOUGH} and more are better"
        )
    seen = histograms(content, images, lambda done: tell(f"ranges: {done} of {2 * len(images)}"))
    wanted = answers(content, held)
    made: dict[Trial, bytes] = {}

    def attempt(method: str, left: tuple[str, ...]) -> Trial:
        ranges = {name: METHODS[method](each) for name, each in seen.items()}
        file = in_eight_bits(content, ranges, full=full_range, left=left)
        trial = Trial(method, left, *distance(answers(file, held), wanted))
        made[trial] = file
        tell(f"{method}: {trial.agreement:.2%} of the classes stay")
        return trial

    chosen = min([attempt(method, ()) for method in METHODS], key=lambda each: each.error)
    layers = weighted_nodes(content)
    if chosen.agreement < GOAL and len(layers) > 2:
        ends = attempt(chosen.calibration, (layers[0], layers[-1]))
        chosen = ends if ends.agreement > chosen.agreement else chosen
    return Quantised(made[chosen], full_range, len(images), len(held), chosen, tuple(made))


def answers(content: bytes, images: Tensor, together: int = 32) -> Tensor:
    """The logits (n, k) of a file for images (n, ...)."""
    file = OnnxNetwork(content)
    return torch.cat([file(part) for part in images.split(together)])


def distance(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    """How far logits are from those wanted, over their spread; the share of equal best classes."""
    spread = (wanted - wanted.mean(0)).square().sum().clamp(min=1e-12)
    same = (got.argmax(1) == wanted.argmax(1)).float().mean()
    return float((got - wanted).square().sum() / spread), float(same)
