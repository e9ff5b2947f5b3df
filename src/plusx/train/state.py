"""All that a resumed run needs: the task, the optimizer, the averaged weights, the step."""

from collections.abc import Sequence
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from plusx.errors import UserError
from plusx.tasks.task import Task, require_task


Tensors = dict[str, dict[str, Tensor]]
# Of an optimizer's groups: given anew at every step, or the way this machine computes them.
NOT_KEPT = ("params", "lr", "foreach", "fused", "capturable", "differentiable")


class State:
    """What training changes. Between two reports of `fit`, this is all of it.

    step: updates made so far.
    ema: the task with averaged weights, once an update `with_ema` has made it, else None.
    loss_scale, clean_steps: of float16 training (`Scaling`); None and 0 without it.

    UserError: `task` is not a Task, the optimizer has parameters that are not the task's, or its
    step needs a closure, as that of LBFGS does.
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
                "trains with optimizers that take one gradient a step"
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
        """Groups of named tensors, and plain values that are exact in JSON.

        The groups are "weights" (with buffers), "optimizer" and, where there is one, "ema". The
        tensors are those in use, not copies: write them before the next step.
        """
        tensors: Tensors = {"weights": dict(self.task.state_dict()), "optimizer": {}}
        if self.ema is not None:
            tensors["ema"] = dict(self.ema.state_dict())
        names = self._names()
        for parameter, moments in self.optimizer.state.items():
            for key, value in moments.items():
                if value is None:
                    continue
                assert isinstance(value, Tensor), f"{key} of an optimizer is no tensor"
                tensors["optimizer"][f"{names[parameter]}.{key}"] = value
        groups = [
            {
                "params": [names[p] for p in group["params"]],
                **{
                    key: list(value) if isinstance(value, tuple) else value
                    for key, value in group.items()
                    if key not in NOT_KEPT
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
        """Go on, bit for bit, where `state_dict` was taken. Tensors are copied.

        UserError: the state is of other parameters than this task's and this optimizer's.
        """
        names = self._names()
        named = {name: p for p, name in names.items()}
        saved_names = [group["params"] for group in values["groups"]]
        ours = [[names[p] for p in group["params"]] for group in self.optimizer.param_groups]
        if saved_names != ours:
            raise UserError(_difference(saved_names, ours))
        missing, unused = self.task.load_state_dict(tensors["weights"], strict=False)
        if missing or unused:
            raise UserError(
                f"the saved state is of another task: {_some(unused)} not here; "
                f"{_some(missing)} not there"
            )
        for group, saved in zip(self.optimizer.param_groups, values["groups"]):
            for key, value in saved.items():
                if key != "params":
                    group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        self.optimizer.state.clear()
        for name, tensor in tensors["optimizer"].items():
            owner, _, key = name.rpartition(".")
            if owner not in named:
                raise UserError(f"the saved state moves {owner}, which this task does not have")
            moments = self.optimizer.state[named[owner]]
            moments[key] = _like(tensor, named[owner]) if key != "step" else self._count(tensor)
        self.ema = None
        if "ema" in tensors:
            self.ema = start_ema(self.task)
            self.ema.load_state_dict(tensors["ema"])
        self.step = values["step"]
        self.seed = values["seed"]
        self.loss_scale = values["loss_scale"]
        self.clean_steps = values["clean_steps"]

    def _count(self, tensor: Tensor) -> Tensor:
        """The optimizer's own count of steps, where the optimizer looks for it."""
        group = self.optimizer.param_groups[0]
        device = group["params"][0].device if group.get("fused") else torch.device("cpu")
        return tensor.to(device, copy=True)

    def _names(self) -> dict[Tensor, str]:
        return {p: name for name, p in self.task.named_parameters()}


def start_ema(task: Task) -> Task:
    """A copy of the task that no gradient reaches."""
    copy = deepcopy(task)
    copy.requires_grad_(False)
    return copy


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy where the parameter is.

    Of the same memory format as well: fused optimizers walk through memory, not through positions.
    """
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
    return tensor.to(parameter.device, copy=True)


def _difference(saved_names: list[list[str]], ours: list[list[str]]) -> str:
    saved, current = (
        {n for group in saved_names for n in group},
        {n for group in ours for n in group},
    )
    if saved == current:
        return "the saved state groups the parameters otherwise: was decay_norms changed?"
    return (
        f"the saved state is of other parameters: {_some(sorted(saved - current))} not here; "
        f"{_some(sorted(current - saved))} not there"
    )


def _some(names: Sequence[str]) -> str:
    """A few of the names and how many more there are, with the verb."""
    if not names:
        return "none is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"
