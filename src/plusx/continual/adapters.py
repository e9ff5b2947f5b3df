"""Residual adapters: a few weights for every task in a frozen network, without forgetting."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.continual.method import Memory, Method, Position, Trained, buffer_name
from plusx.errors import UserError
from plusx.nn.dims import CONVOLUTIONS
from plusx.tasks.task import Task, Wrapped


MAX_ADDED = 0.1  # numbers that a task adds, over the parameters of the network
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Adapted(Wrapped):
    """A task that trains only the adapters, the norms and the head of its network.

    An adapter is a 1x1 convolution parallel to a larger one with the same stride, whose output is
    added (Rebuffi et al. 2018, section 3.1; Rebuffi et al. 2017 has it in series). Their sum is one
    convolution, whose centre weights are those of both, so that the network keeps its modules: the
    centre weights are trained, and the others are put back after every update.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        net = task.net
        net.requires_grad_(False)
        for name, module in net.named_modules():
            if isinstance(module, _NORMS) or name == "fc":
                module.requires_grad_(True)
        self.adapted = adapted_weights(net)
        for name in self.adapted:
            weight = net.get_parameter(name).requires_grad_(True)
            self.register_buffer(
                buffer_name("frozen", name), weight.detach().clone(), persistent=False
            )

    @torch.no_grad()
    def after_step(self) -> None:
        for name in self.adapted:
            weight = self.task.net.get_parameter(name)
            frozen = self.get_buffer(buffer_name("frozen", name))
            trained = centre(weight).clone()
            weight.copy_(frozen)
            centre(weight).copy_(trained)
        self.task.after_step()


@dataclass(frozen=True)
class Adapters(Method):
    """The network of the first task does not change; every other task adds adapters, norms and a
    head. Predictions for a task do not change after its training: forgetting is exactly 0."""

    scenarios = ("task",)
    why = "the adapters of a task are used where the task of an input is given"

    def wrap(self, task: Task, memory: Memory, position: Position) -> Task:
        net = task.net
        added = sum(tensor.numel() for _, tensor in _of_task(net, position.current))
        total = sum(parameter.numel() for parameter in net.parameters())
        if added > MAX_ADDED * total:
            raise UserError(
                f'[method] kind = "adapters": a task would add {added / total:.1%} of the '
                f"{total:,} parameters of the network, and at most {MAX_ADDED:.0%} are allowed; "
                "choose a larger network"
            )
        if position.task == 0:
            return task
        net.load_state_dict(memory.tensors_of("base."))
        return Adapted(task)

    def finish(self, trained: Trained) -> Memory:
        net, position = trained.task.net, trained.position
        if position.task == 0:
            return Memory(tensors={f"base.{name}": t for name, t in net.state_dict().items()})
        added = {
            f"task.{position.task}.{name}": tensor.contiguous()
            for name, tensor in _of_task(net, position.current)
        }
        return Memory(tensors={**trained.memory.tensors, **added})

    def predictor(self, task: Task, memory: Memory, position: Position, number: int) -> Task:
        last = min(number, position.task)  # a later task has no adapters yet
        task.net.load_state_dict(memory.tensors_of("base."))
        if last:
            with torch.no_grad():
                for name, tensor in _of_task(task.net, position.classes[last]):
                    tensor.copy_(memory.tensors[f"task.{last}.{name}"])
        return task


def adapted_weights(net: nn.Module) -> list[str]:
    """Return the weights that have an adapter: of every module with convolutions above 1x1, except
    the stem, the last of them with odd sizes."""
    last: dict[str, str] = {}
    stem = True
    for name, module in net.named_modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        if not stem and max(module.kernel_size) > 1 and all(k % 2 for k in module.kernel_size):
            last[name.rpartition(".")[0]] = f"{name}.weight"
        stem = False
    return list(last.values())


def centre(weight: Tensor) -> Tensor:
    """Return the centre weights of a convolution, as a view."""
    for dimension in range(weight.ndim - 1, 1, -1):
        weight = weight.select(dimension, weight.shape[dimension] // 2)
    return weight


def _of_task(net: nn.Module, classes: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a task has of its own, as views: adapters, norms, and its rows of the head."""
    for name in adapted_weights(net):
        yield name, centre(net.get_parameter(name).detach())
    for name, module in net.named_modules():
        if isinstance(module, _NORMS):
            for key, tensor in module.state_dict().items():
                yield f"{name}.{key}", tensor
    head = net.get_submodule("fc")
    for key, tensor in head.state_dict().items():
        for number in classes:
            yield f"fc.{key}.{number}", tensor[number]
