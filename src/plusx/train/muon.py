"""Muon: filters move by their momentum made orthogonal, everything else by SGD.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", in the form that
their record on CIFAR-10 has: Nesterov momentum, a few steps of a Newton-Schulz iteration, and
filters that are brought to one norm before each update.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.tasks.task import Task


# The quintic whose iteration lifts small singular values fastest (Jordan et al. 2024): it brings
# them near 1, not to 1, and for an update that is as good.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def orthogonal(matrix: Float[Tensor, "r c"], steps: int = 3) -> Float[Tensor, "r c"]:
    """The matrix with its singular values brought towards 1, its singular vectors kept.

    Each step maps every singular value s to a s + b s^3 + c s^5, after the matrix was divided by
    its Frobenius norm so that none is above 1. With three steps those above 0.02 of the norm end
    between 0.68 and 1.21, with five those above 0.003. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    if tall:
        x = x.T  # the product with itself is then the smaller one
    for _ in range(steps):
        squared = x @ x.T
        x = torch.addmm(x, torch.addmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def orthogonal_flops(shape: Sequence[int], steps: int = 3) -> int:
    """Floating-point operations of `orthogonal` for a filter of this shape (out, in, *kernel)."""
    rows, columns = sorted((shape[0], prod(shape[1:])))
    return steps * 2 * rows * rows * (2 * columns + rows)


class Muon(torch.optim.Optimizer):
    """Muon for groups with `orthogonal`, SGD with Nesterov momentum for the others.

    In an orthogonal group a filter (out, in, *kernel) is a matrix of `out` rows. The momentum
    buffer b becomes momentum b + gradient; the filter is scaled to the norm sqrt(out), a norm of 1
    a row; then it moves by -lr * orthogonal(gradient + momentum b).

    In the others the gradient gets weight_decay times the parameter first, the buffer is made in
    the same way, and the parameter moves by -lr * (gradient + momentum b).

    A parameter without a gradient is left as it is.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, *, iterations: int = 3) -> None:
        if iterations < 1:
            raise UserError(f"iterations is {iterations}; it has to be at least 1")
        defaults = {
            "lr": lr,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "orthogonal": False,
            "iterations": iterations,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            gradients: tuple[Tensor, ...] | list[Tensor] = [
                p.grad for p in moved if p.grad is not None
            ]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, moved, alpha=group["weight_decay"])
            buffers = [self.state[p]["momentum_buffer"] for p in moved]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
            rate = group["lr"]
            if group["orthogonal"]:
                for parameter, update in zip(moved, updates, strict=True):
                    parameter.mul_(sqrt(len(parameter)) / parameter.norm().clamp(min=1e-12))
                    rows = orthogonal(update.flatten(1), group["iterations"])
                    parameter.add_(rows.reshape(update.shape), alpha=-rate)
            else:
                torch._foreach_add_(moved, updates, alpha=-rate)


def make_muon(
    task: Task,
    *,
    lr: float,
    momentum: float = 0.6,
    iterations: int = 3,
    head_lr: float = 1.0,
    bias_lr: float = 0.1,
    sgd_momentum: float = 0.85,
    weight_decay: float = 0.0,
) -> Muon:
    """Muon over every parameter of the task that is trained.

    lr, momentum and iterations are of the filters of convolutions. All other weights, as those of
    the head, move by SGD at head_lr with weight_decay, and parameters with one number a channel
    (biases, norms) at bias_lr without it, both with sgd_momentum. The rates are those of the start:
    a schedule for lr scales all three alike.
    """
    filters = {id(module.weight) for module in task.modules() if isinstance(module, CONVOLUTIONS)}
    trained = [p for p in task.parameters() if p.requires_grad]
    if not trained:
        raise UserError("no parameter of the task requires a gradient: nothing can be trained")
    moved = [p for p in trained if id(p) in filters]
    if not moved:
        raise UserError("muon is for the filters of convolutions, and the network has none")
    others = [p for p in trained if id(p) not in filters]
    flat = [p for p in others if p.ndim < 2 or p.numel() == p.shape[0]]
    flat_ids = {id(p) for p in flat}
    sgd = {"momentum": sgd_momentum, "orthogonal": False}
    groups: list[dict[str, Any]] = [
        {"params": moved, "lr_scale": 1.0, "orthogonal": True, "momentum": momentum},
        {
            "params": [p for p in others if id(p) not in flat_ids],
            "lr": head_lr,
            "lr_scale": head_lr / lr,
            "weight_decay": weight_decay,
            **sgd,
        },
        {"params": flat, "lr": bias_lr, "lr_scale": bias_lr / lr, **sgd},
    ]
    return Muon([group for group in groups if group["params"]], lr, iterations=iterations)
