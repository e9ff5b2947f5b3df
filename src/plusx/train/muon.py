"""Muon: SGD with orthogonalised momentum for convolution filters.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", in the form of their
CIFAR-10 record: Nesterov momentum, a few Newton-Schulz iterations, and filters that are normalised
before each update. All other parameters are updated by plain SGD.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.tasks.task import Task
from plusx.train.optim import trained_parameters


# the quintic whose iteration increases small singular values fastest (Jordan et al. 2024); it
# brings them near 1, not to 1, which is precise enough for an update
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def orthogonal(matrix: Float[Tensor, "r c"], steps: int = 3) -> Float[Tensor, "r c"]:
    """Return the matrix with its singular values moved towards 1 and the same singular vectors.

    Each step maps every singular value s to a s + b s^3 + c s^5, after division by the Frobenius
    norm so that none is above 1. With three steps, values above 0.02 of the norm end between 0.68
    and 1.21; with five steps, those above 0.003. A zero matrix stays zero.
    """
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    if tall:
        x = x.T  # the smaller Gram matrix
    for _ in range(steps):
        squared = x @ x.T
        x = torch.addmm(x, torch.addmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def orthogonal_flops(shape: Sequence[int], steps: int = 3) -> int:
    """Return the FLOPs of `orthogonal` for a filter of this shape (out, in, *kernel)."""
    rows, columns = sorted((shape[0], prod(shape[1:])))
    return steps * 2 * rows * rows * (2 * columns + rows)


class Muon(torch.optim.Optimizer):
    """Muon for groups with `orthogonal`, SGD with Nesterov momentum for the others.

    In an orthogonal group a filter (out, in, *kernel) is a matrix of `out` rows. The momentum
    buffer b becomes momentum b + gradient; the filter is scaled to the norm sqrt(out), a norm of 1
    per row; then it is updated by -lr * orthogonal(gradient + momentum b).

    In other groups weight_decay times the parameter is added to the gradient, the buffer is updated
    in the same way, and the parameter is updated by -lr * (gradient + momentum b).

    A parameter without a gradient is unchanged.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, *, iterations: int = 3) -> None:
        if iterations < 1:
            raise UserError(f"iterations is {iterations}; it must be at least 1")
        defaults = {
            "lr": lr,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "orthogonal": False,
            "iterations": iterations,
        }
        super().__init__(groups, defaults)
        for parameter in trained_parameters(self):
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients: tuple[Tensor, ...] | list[Tensor] = [
                p.grad for p in parameters if p.grad is not None
            ]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            updates = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
            rate = group["lr"]
            if group["orthogonal"]:
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(sqrt(len(parameter)) / parameter.norm().clamp(min=1e-12))
                    orthogonalised = orthogonal(update.flatten(1), group["iterations"])
                    parameter.add_(orthogonalised.reshape(update.shape), alpha=-rate)
            else:
                torch._foreach_add_(parameters, updates, alpha=-rate)


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
    """Return Muon for every trainable parameter of the task.

    lr, momentum and iterations apply to convolution filters. All other weights, such as those of
    the head, are updated by SGD at head_lr with weight_decay, and parameters with one number per
    channel (biases, norms) at bias_lr without it, both with sgd_momentum. The rates are the initial
    ones: a schedule for lr scales all three equally.
    """
    filter_ids = {
        id(module.weight) for module in task.modules() if isinstance(module, CONVOLUTIONS)
    }
    trained = [p for p in task.parameters() if p.requires_grad]
    if not trained:
        raise UserError("no parameter of the task requires a gradient: nothing can be trained")
    conv_filters = [p for p in trained if id(p) in filter_ids]
    if not conv_filters:
        raise UserError("muon is for the filters of convolutions, and the network has none")
    others = [p for p in trained if id(p) not in filter_ids]
    per_channel = [p for p in others if p.ndim < 2 or p.numel() == p.shape[0]]
    per_channel_ids = {id(p) for p in per_channel}
    sgd = {"momentum": sgd_momentum, "orthogonal": False}
    groups: list[dict[str, Any]] = [
        {"params": conv_filters, "lr_scale": 1.0, "orthogonal": True, "momentum": momentum},
        {
            "params": [p for p in others if id(p) not in per_channel_ids],
            "lr": head_lr,
            "lr_scale": head_lr / lr,
            "weight_decay": weight_decay,
            **sgd,
        },
        {"params": per_channel, "lr": bias_lr, "lr_scale": bias_lr / lr, **sgd},
    ]
    return Muon([group for group in groups if group["params"]], lr, iterations=iterations)
