"""Optimizers, and the parameters that weight decay applies to."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.tasks.task import Task
from plusx.train.layerwise import Lamb, Lars


OPTIMIZERS = ("sgd", "adamw", "lars", "lamb")


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
    trust: float = 1e-3,
    lr_scales: Mapping[Tensor, float] | None = None,
) -> torch.optim.Optimizer:
    """Return SGD, AdamW, LARS or LAMB for every trainable parameter of the task.

    The defaults are those of He et al. 2015, section 4.2, with weight decay for all parameters.
    With `decay_norms=False` it does not apply to biases, parameters of norms and per-channel
    scales, and LARS and LAMB never adapt the rate of these. `momentum` is for "sgd" and "lars",
    `nesterov` for "sgd", `betas` for "adamw" (Loshchilov and Hutter 2019) and "lamb", `trust` for
    "lars". `lr_scales` are factors of the learning rate for single parameters; the default is 1.
    The task must already be on its device and in its memory format.
    """
    if kind not in OPTIMIZERS:
        raise UserError(f"optimizer is {kind!r}; allowed are {', '.join(OPTIMIZERS)}")
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError("no parameter of the task requires a gradient: nothing can be trained")
    layerwise = kind in ("lars", "lamb")
    per_channel = set() if decay_norms and not layerwise else _without_decay(task)
    others: dict[str, Any] = {} if decay_norms else {"weight_decay": 0.0}
    if layerwise:
        others["adapt"] = False
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained.items() if n not in per_channel]},
        {"params": [p for n, p in trained.items() if n in per_channel], **others},
    ]
    groups = [group for group in groups if group["params"]]
    if lr_scales is not None:
        groups = [scaled_group for group in groups for scaled_group in _scaled(group, lr_scales)]
    if kind == "lars":
        return Lars(groups, lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
    if kind == "lamb":
        return Lamb(groups, lr, betas=betas, weight_decay=weight_decay)
    # one kernel for all small tensors of a network: six times as fast as a loop on a CPU
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
            # The fused kernel needs the buffers of all parameters, but a block that stochastic
            # depth drops in the first step would have none. Zeros are equivalent.
            for parameter in trained.values():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)


def _scaled(group: dict[str, Any], lr_scales: Mapping[Tensor, float]) -> list[dict[str, Any]]:
    """Return a group split by the scale of the rate, the highest first."""
    by_scale: dict[float, list[Tensor]] = {}
    for parameter in group["params"]:
        by_scale.setdefault(lr_scales.get(parameter, 1.0), []).append(parameter)
    return [
        {**group, "params": parameters, "lr_scale": scale}
        for scale, parameters in sorted(by_scale.items(), reverse=True)
    ]


def _match_layouts(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give every gradient the strides of its parameter. torch's fused SGD on a CPU iterates over
    both in memory order: with other strides (a gradient that was set by hand) it would silently
    update the wrong elements."""
    for parameter in trained_parameters(optimizer):
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _without_decay(task: Task) -> set[str]:
    """Return the names of biases, of the parameters of norms and of per-channel scales."""
    # recognised by the class name, so that norms of other libraries are included
    norms = tuple(
        name
        for name, module in task.named_modules()
        if "norm" in type(module).__name__.lower() and not list(module.children())
    )
    # a convolution of one input channel has one number per filter too, but decays
    with_weights = {
        name
        for name, module in task.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    parameters = dict(task.named_parameters())
    module_of = {name: name.rpartition(".")[0] for name in parameters}
    return {
        name
        for name, p in parameters.items()
        if module_of[name] in norms
        or name.endswith("bias")
        or (p.numel() == (p.shape[0] if p.ndim else 1) and module_of[name] not in with_weights)
    }


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return every parameter of the optimizer, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]
