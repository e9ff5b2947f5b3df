"""One step of a network of a thousand layers and more: does a gradient reach every block?"""

import math
import time
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.study.anatomy import network_of
from plusx.study.gradient import BlockGradient, block_gradients


@dataclass(frozen=True)
class DeepStep:
    """A network's training step.

    `gradients` are those that the step goes by. `loss` is before it, `after` on the same images
    behind it, both with the batch's own statistics. `seconds` are those of the step.
    """

    gradients: tuple[BlockGradient, ...]
    loss: float
    after: float
    seconds: float

    @property
    def finite(self) -> bool:
        """Whether the losses and every block's gradient are finite."""
        norms = [norm for each in self.gradients for norm in (each.weights, each.outputs)]
        return all(map(math.isfinite, (*norms, self.loss, self.after)))

    @property
    def reached(self) -> int:
        """How many blocks have a gradient in their weights and in what they give."""
        return sum(each.weights > 0 and each.outputs > 0 for each in self.gradients)


def deep_step(
    net: nn.Module,
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    *,
    rate: float = 0.01,
    seed: int = 0,
) -> DeepStep:
    """Train a network one step of plain SGD; it is left trained, in training mode.

    He et al. 2015, section 4.2, begin their deep networks at a rate of 0.01. What is drawn
    (dropout, stochastic depth) is drawn from `seed`. UserError: the network has no blocks.
    """
    net = network_of(net)
    net.train()
    gradients = block_gradients(net, inputs, targets, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        began = time.perf_counter()
        optimizer = torch.optim.SGD(net.parameters(), rate)
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        took = time.perf_counter() - began
    with torch.no_grad():
        after = F.cross_entropy(net(inputs), targets)
    return DeepStep(tuple(gradients), loss.item(), after.item(), took)
