"""How strongly the layers of a network respond: He et al. 2015, section 4.2 and figure 7."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.nn.block import ResidualBlock
from plusx.nn.init import CONVOLUTIONS
from plusx.study.anatomy import network_of, untouched


@dataclass(frozen=True)
class Response:
    """The standard deviation of what one layer gives, over images, channels and positions.

    `name` is the module's whose output was taken: the norm behind the convolution, or the
    convolution where none follows it.
    """

    name: str
    std: float


def responses(net: nn.Module, inputs: Iterable[Tensor]) -> list[Response]:
    """The response of every 3 x 3 layer, in order: after batch norm, before anything else.

    That is before the nonlinearity and before the sum, as the paper says it. `inputs` are batches
    (n, ...); the network is run in evaluation mode, and is left as it was.

    UserError: the network is not made of blocks, has no such layer, or `inputs` are empty.
    """
    net = network_of(net)
    layers = three_by_three(net)
    if not layers:
        raise UserError("the network has no layer of 3 x 3, so there is no response to measure")
    moments = {name: torch.zeros(3, dtype=torch.float64) for name in layers}

    def keep(name: str, output: Tensor) -> None:
        values = output.detach().double()
        moments[name] += torch.stack(
            [torch.tensor(values.numel()).double(), values.sum().cpu(), values.square().sum().cpu()]
        )

    with untouched(net), torch.no_grad(), watched(layers, keep):
        net.eval()
        for batch in inputs:
            net(batch)
    if any(count == 0 for count, _, _ in moments.values()):
        raise UserError("there are no inputs to measure responses with")
    return [
        Response(name, float((squares / count - (total / count) ** 2).clamp(min=0).sqrt()))
        for name, (count, total, squares) in moments.items()
    ]


def three_by_three(net: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs are the responses, by name and in the order of the forward pass."""
    net = network_of(net)
    found = _responding("", net, net.stem)
    for name, block in net.named_modules():
        if isinstance(block, ResidualBlock):
            found |= _responding(f"{name}.", block, (*block.lead, *block.branch, *block.after))
    return found


def _responding(prefix: str, owner: nn.Module, words: Iterable[str]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    said = [*words, ""]
    for word, following in pairwise(said):
        layer = getattr(owner, word)
        if isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {3}:
            taken = following if following.startswith(("bn", "norm")) else word
            found[prefix + taken] = getattr(owner, taken)
    return found


@contextmanager
def watched(layers: dict[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Give `keep` each layer's output as it is made, before an activation can overwrite it."""

    def watcher(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: keep(name, output)

    handles = [layer.register_forward_hook(watcher(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
