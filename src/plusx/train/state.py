"""The state of training, with everything that a resumed run needs: the task, the optimizer, the
averaged weights, the step."""

from collections.abc import Sequence
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.tasks.task import Task, require_task


Tensors = dict[str, dict[str, Tensor]]
# keys of an optimizer's groups that are set at every step, or depend on the machine
NOT_SAVED = ("params", "lr", "foreach", "fused", "capturable", "differentiable")


class State:
    """The state of training, complete between two reports of `fit`.

    step: the number of updates so far.
    ema: the task with averaged weights, created by an update `with_ema`, else None.
    loss_scale, clean_steps: of float16 training (`Scaling`); None and 0 otherwise.

    Raises UserError if `task` is not a Task, the optimizer has parameters that are not the task's,
    or its step needs a closure, as that of LBFGS.
    """

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
        require_task(task)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"State takes an optimizer, not {type(optimizer).__name__}: "
                "plusx.make_optimizer(task, 'sgd')"
            )
        if signature(optimizer.step).parameters["closure"].default is Parameter.empty:
            raise UserError(
                f"{type(optimizer).__name__} needs a closure that computes the loss again; plusx "
                "supports optimizers with one gradient per step"
            )
        parameters = {id(parameter) for parameter in task.parameters()}
        groups = optimizer.param_groups
        if not all(id(p) in parameters for group in groups for p in group["params"]):
            raise UserError("the optimizer has parameters that are not the task's")
        self.task = task
        self.optimizer = optimizer
        self.seed = seed
        self.step = 0
        self.ema: Task | None = None
        self.loss_scale: float | None = None
        self.clean_steps = 0

    def state_dict(self) -> tuple[Tensors, dict[str, Any]]:
        """Return groups of named tensors, and plain values that are exact in JSON.

        The groups are "weights" (with buffers), "optimizer" and, if there is one, "ema". Tensors
        are not copied: write them before the next step.
        """
        tensors: Tensors = {"weights": dict(self.task.state_dict()), "optimizer": {}}
        if self.ema is not None:
            tensors["ema"] = dict(self.ema.state_dict())
        names = self._names()
        for parameter, moments in self.optimizer.state.items():
            for key, value in moments.items():
                if value is None:
                    continue
                assert isinstance(value, Tensor), f"{key} of an optimizer is not a tensor"
                tensors["optimizer"][f"{names[parameter]}.{key}"] = value
        groups = [
            {
                "params": [names[p] for p in group["params"]],
                **{
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in group.items()
                    if key not in NOT_SAVED
                },
            }
            for group in self.optimizer.param_groups
        ]
        values = {
            "step": self.step,
            "seed": self.seed,
            "loss_scale": self.loss_scale,
            "clean_steps": self.clean_steps,
            "groups": groups,
        }
        return tensors, values

    def load_state_dict(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit. Tensors are copied. Raises UserError if
        the state is for other parameters than those of this task and optimizer."""
        names = self._names()
        parameters = {name: p for p, name in names.items()}
        saved_names = [group["params"] for group in values["groups"]]
        current_names = [
            [names[p] for p in group["params"]] for group in self.optimizer.param_groups
        ]
        if saved_names != current_names:
            raise UserError(_difference(saved_names, current_names))
        missing, unexpected = self.task.load_state_dict(tensors["weights"], strict=False)
        if missing or unexpected:
            raise UserError(
                f"the saved state is of another task: {_few_names(unexpected)} not in this task; "
                f"{_few_names(missing)} not in the saved state"
            )
        for group, saved in zip(self.optimizer.param_groups, values["groups"]):
            for key, value in saved.items():
                if key != "params":
                    group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        self.optimizer.state.clear()
        for name, tensor in tensors["optimizer"].items():
            owner, _, key = name.rpartition(".")
            if owner not in parameters:
                raise UserError(f"the saved state has {owner}, which this task does not have")
            moments = self.optimizer.state[parameters[owner]]
            moments[key] = (
                _like(tensor, parameters[owner]) if key != "step" else self._count(tensor)
            )
        self.ema = None
        if "ema" in tensors:
            self.ema = start_ema(self.task)
            self.ema.load_state_dict(tensors["ema"])
        self.step = values["step"]
        self.seed = values["seed"]
        self.loss_scale = values["loss_scale"]
        self.clean_steps = values["clean_steps"]

    def _count(self, tensor: Tensor) -> Tensor:
        """Return the optimizer's step count on the device where the optimizer expects it."""
        group = self.optimizer.param_groups[0]
        device = group["params"][0].device if group.get("fused") else torch.device("cpu")
        return tensor.to(device, copy=True)

    def _names(self) -> dict[Tensor, str]:
        return {p: name for name, p in self.task.named_parameters()}


def start_ema(task: Task) -> Task:
    """Return a copy of the task without gradients."""
    copy = deepcopy(task)
    copy.requires_grad_(False)
    return copy


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy on the parameter's device and in its memory format. Fused optimizers iterate
    over memory, so the formats must match."""
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return tensor.to(parameter.device, copy=True)


def _difference(saved_names: list[list[str]], current_names: list[list[str]]) -> str:
    """Return why a saved state with these groups of names does not fit."""
    saved, current = set().union(*saved_names), set().union(*current_names)
    if saved == current:
        return "the saved state groups the parameters differently: was decay_norms changed?"
    return (
        f"the saved state is for other parameters: {_few_names(sorted(saved - current))} not in "
        f"this task; {_few_names(sorted(current - saved))} not in the saved state"
    )


def _few_names(names: Sequence[str]) -> str:
    """Return a few of the names and the number of others, with the verb."""
    if not names:
        return "none is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"
