"""Networks of a thousand layers and more: do they build, train a step and pass a gradient?"""

import math
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from plusx.models import create_model
from plusx.study.anatomy import network_of
from plusx.study.gradient import BlockGradient, block_gradients


@dataclass(frozen=True)
class DeepStep:
    """A network and its first training step, on noise.

    `gradients` are those that the step goes by. `loss` is before it, `after` on the same images
    behind it, both with the batch's own statistics.
    """

    name: str
    parameters: int
    gradients: tuple[BlockGradient, ...]
    loss: float
    after: float
    build_seconds: float
    step_seconds: float

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
    name: str,
    *,
    rate: float = 0.01,
    size: int = 8,
    batch_size: int = 4,
    seed: int = 0,
) -> DeepStep:
    """Build a network of the zoo and train it one step of SGD on `batch_size` images of noise.

    The images have `size` positions a dimension: the depth is what counts here, and small ones
    keep it in seconds. He et al. 2015, section 4.2, begin their deep networks at a rate of 0.01.

    ValueError: the network is unknown, or not made of blocks.
    """
    began = time.perf_counter()
    net = network_of(create_model(name, seed=seed)).train()
    built = time.perf_counter() - began
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, net.spec.in_channels, *[size] * net.spec.ndim)
    inputs = torch.randn(shape, generator=generator)
    targets = torch.randint(net.spec.num_classes, (batch_size,), generator=generator)
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
    return DeepStep(
        name=name,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        gradients=tuple(gradients),
        loss=loss.item(),
        after=after.item(),
        build_seconds=built,
        step_seconds=took,
    )
