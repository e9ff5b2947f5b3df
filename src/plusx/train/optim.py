"""Optimizers, and which parameters decay."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.tasks.task import Task


OPTIMIZERS = ("sgd", "adamw")


def make_optimizer(
    task: Task,
    kind: str = "sgd",
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_norms: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    lr_scales: Mapping[Tensor, float] | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW over every parameter of the task that is trained.

    The defaults are those of He et al. 2015, section 4.2, which lets every parameter decay.
    With `decay_norms=False` biases, the parameters of norms and one-number-a-channel scales do not.
    `momentum` and `nesterov` are of "sgd", `betas` of "adamw" (Loshchilov and Hutter 2019).
    `lr_scales` are factors of the learning rate for single parameters; 1 for the others.
    The task has to be on its device and in its memory format already.
    """
    if kind not in OPTIMIZERS:
        raise UserError(f"optimizer is {kind!r}; allowed are {', '.join(OPTIMIZERS)}")
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError("no parameter of the task requires a gradient: nothing can be trained")
    spared = set() if decay_norms else _spared(task)
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained.items() if n not in spared]},
        {"params": [p for n, p in trained.items() if n in spared], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if lr_scales is not None:
        groups = [part for group in groups for part in _scaled(group, lr_scales)]
    # One kernel for all of a network's small tensors: on a CPU six times as fast as a loop.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained.values())
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=fused,
        )
        optimizer.register_step_pre_hook(_match_layouts)
        if momentum:
            # As the first step would leave it. The fused kernel takes all or none of them, but a
            # block that stochastic depth drops in the first step gets none there.
            for parameter in trained.values():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)


def _scaled(group: dict[str, Any], lr_scales: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """A group as one for each scale of the rate, the highest first."""
    by_scale: dict[float, list[Tensor]] = {}
    for parameter in group["params"]:
        by_scale.setdefault(lr_scales.get(parameter, 1.0), []).append(parameter)
    return [
        {**group, "params": parameters, "lr_scale": scale}
        for scale, parameters in sorted(by_scale.items(), reverse=True)
    ]


def _match_layouts(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give every gradient the strides of its parameter.

    torch's fused SGD on a CPU walks both in memory order: with other strides (a gradient that was
    set by hand) it would silently update the wrong elements.
    """
    for parameter in trained_parameters(optimizer):
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _spared(task: Task) -> set[str]:
    """The names of biases, of the parameters of norms and of scales a channel."""
    # Told by what they are: a norm's class says so, whoever wrote it.
    norms = tuple(
        name
        for name, module in task.named_modules()
        if "norm" in type(module).__name__.lower() and not list(module.children())
    )
    # a convolution of one input channel has one number a filter too, and decays
    weighted = {
        name
        for name, module in task.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    named = dict(task.named_parameters())
    owner = {name: name.rpartition(".")[0] for name in named}
    return {
        name
        for name, p in named.items()
        if owner[name] in norms
        or name.endswith("bias")
        or (p.numel() == (p.shape[0] if p.ndim else 1) and owner[name] not in weighted)
    }


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter the optimizer moves, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]
