"""The loss around a network's weights: Li et al. 2018, sections 3 and 4.

A direction is random and normalised filter by filter, so that networks whose weights differ in
scale can be compared: each filter of it is as long as the network's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.study.anatomy import untouched


Evaluate = Callable[[nn.Module], float]
Direction = Mapping[str, Tensor]  # one tensor for each parameter that moves, by name


def random_direction(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """A filter-normalised direction (section 4, with their rule for biases and batch norm).

    A filter is what one output channel or unit of a layer has: a row of a parameter with two
    dimensions or more. Biases and the parameters of norms do not move. The same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            rows, own = drawn.flatten(1), parameter.detach().cpu().double().flatten(1)
            rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-10)
            rows = rows * own.norm(dim=1, keepdim=True)
            found[name] = rows.reshape(drawn.shape).to(parameter.device, parameter.dtype)
    return found


def line(
    net: nn.Module, evaluate: Evaluate, direction: Direction, steps: Sequence[float]
) -> list[float]:
    """The loss, as `evaluate` gives it, at weights + step * direction for each step.

    The network is in evaluation mode, with the statistics of batch norm that it has; gradients are
    off. Afterwards it is as it was, bit for bit.
    """
    return plane(net, evaluate, (direction, {}), steps, [0.0])[0]


def plane(
    net: nn.Module,
    evaluate: Evaluate,
    directions: tuple[Direction, Direction],
    xs: Sequence[float],
    ys: Sequence[float],
) -> list[list[float]]:
    """The loss at weights + x * first + y * second: one row for each y. As `line` otherwise."""
    parameters = dict(net.named_parameters())
    for direction in directions:
        for name, along in direction.items():
            if name not in parameters or parameters[name].shape != along.shape:
                raise UserError(f"the direction is of another network: at {name}")
    with untouched(net), torch.no_grad(), weights_kept(parameters) as begun:
        net.eval()
        rows = []
        for y in ys:
            row = []
            for x in xs:
                for name in {**directions[0], **directions[1]}:
                    moved = begun[name].clone()
                    for part, direction in zip((x, y), directions):
                        if name in direction:
                            moved += part * direction[name]
                    parameters[name].copy_(moved)
                row.append(evaluate(net))
            rows.append(row)
        return rows


@contextmanager
def weights_kept(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Copies of the parameters, which are copied back in the end."""
    begun = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield begun
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(begun[name])
