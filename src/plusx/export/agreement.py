"""Whether a file answers as the network does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.export.session import OnnxNetwork


TOLERANCE = 1e-4  # of the largest logit, or of 1 where that is smaller
CHECKED = 8  # inputs


@dataclass(frozen=True)
class Agreement:
    """The largest difference of a logit over `inputs` inputs, and what is allowed."""

    error: float
    largest: float
    inputs: int

    @property
    def allowed(self) -> float:
        return TOLERANCE * max(1.0, self.largest)


def example_inputs(sizes: tuple[int, ...], tokens: int = 0) -> Tensor:
    """(CHECKED, *sizes): normal noise, or token numbers below `tokens`; the same every time."""
    random = torch.Generator().manual_seed(0)
    if tokens:
        return torch.randint(tokens, (CHECKED, *sizes), generator=random)
    return torch.randn(CHECKED, *sizes, generator=random)


def compare(net: nn.Module, content: bytes, inputs: Tensor) -> Agreement:
    """Ask the network and the file the same, all inputs together and the first one alone.

    RuntimeError: they differ by more than allowed, or do not tell the same class where the best
    leads by more than twice that.
    """
    file = OnnxNetwork(content)
    with torch.inference_mode():
        wanted = torch.cat([net(inputs), net(inputs[:1])]).float()
        got = torch.cat([file(inputs), file(inputs[:1])])
    found = Agreement(float((got - wanted).abs().max()), float(wanted.abs().max()), len(inputs))
    if not found.error <= found.allowed:  # also where it is no number
        raise RuntimeError(
            f"the file does not compute what the network does: logits differ by {found.error:.2g}, "
            f"allowed are {found.allowed:.2g}"
        )
    best = wanted.topk(min(2, wanted.shape[1]), dim=1).values
    clear = best[:, 0] - best[:, -1] > 2 * found.allowed
    if bool((got.argmax(1) != wanted.argmax(1))[clear].any()):
        raise RuntimeError("the file does not tell the classes that the network tells")
    return found
