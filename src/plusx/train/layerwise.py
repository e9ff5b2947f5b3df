"""LARS and LAMB: the step of every layer is proportional to the norm of its weights.

With large batches and learning rates some layers would diverge while others hardly move. Both take
groups with `adapt`: without it (biases, norms and other parameters with one number per channel)
LARS is SGD with momentum and LAMB is AdamW with its decay inside the step, as in the authors' code.
"""

from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """SGD with momentum and a local rate per layer (You et al. 2017, "Large batch training of
    convolutional networks", algorithm 1).

    With weight w, gradient g and weight decay b the local rate is trust |w| / (|g| + b |w|), or 1
    if a norm is 0. The momentum v becomes momentum v + lr rate (g + b w), and w becomes w - v.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": True,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            decay = group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad.add(parameter, alpha=decay)
                if group["adapt"]:
                    norm = parameter.norm()
                    update *= group["trust"] * _ratio(norm, parameter.grad.norm() + decay * norm)
                buffer = self.state[parameter]["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(update, alpha=group["lr"])
                parameter.sub_(buffer)


class Lamb(torch.optim.Optimizer):
    """AdamW with a step per layer (You et al. 2020, "Large batch optimization for deep learning",
    algorithm 2, with phi the identity).

    With r the bias-corrected ratio of Adam's moments the update is u = r + weight_decay w, and w
    becomes w - lr |w| / |u| u; the ratio of norms is 1 if one is 0.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": True,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                count = int(state["step"])
                state["exp_avg"].lerp_(gradient, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                mean = state["exp_avg"] / (1 - beta1**count)
                square = state["exp_avg_sq"] / (1 - beta2**count)
                update = mean / (square.sqrt() + group["eps"])
                update.add_(parameter, alpha=group["weight_decay"])
                if group["adapt"]:
                    update *= _ratio(parameter.norm(), update.norm())
                parameter.sub_(update, alpha=group["lr"])


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return the ratio of two norms, or 1 if one of them is 0."""
    return torch.where((above > 0) & (below > 0), above / below, 1.0)
