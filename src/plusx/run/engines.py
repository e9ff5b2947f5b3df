"""Data-parallel training: DistributedDataParallel, or FSDP2 with sharded state."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from plusx.data.batch import Batch
from plusx.errors import UserError
from plusx.nn.block import ResidualBlock
from plusx.recipe import Recipe
from plusx.run import build
from plusx.run.distributed import DistributedContext
from plusx.run.selfsupervised import check_processes
from plusx.tasks.task import Task
from plusx.train.state import State, Tensors


@runtime_checkable
class Engine(Protocol):
    """How the network is distributed over processes, and how gradients are reduced."""

    def loss(self, batch: Batch, last: bool) -> Tensor:
        """Return the task's loss; with `last`, its backward pass reduces gradients over ranks."""

    def full_state(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        """Return the state without sharding; must be called on every rank."""

    def full_task(self) -> Task:
        """Return the task without sharding, for evaluation; must be called on every rank."""


class Reducer:
    """The `train.update.DistributedReducer` of an engine.

    samples: from a step to the number of samples in its batch, over all processes
    """

    def __init__(
        self, world: DistributedContext, engine: Engine, samples: Callable[[int], int]
    ) -> None:
        self.world, self.engine = world, engine
        self.samples = samples

    def loss(self, batch: Batch, last: bool) -> Tensor:
        return self.engine.loss(batch, last)

    def parts(self, step: int, at_most: int) -> int:
        """Limit the number of parts to the fewest samples of a rank.

        FSDP gathers shards from all ranks in every part, so all ranks need equally many parts.
        """
        return max(1, min(at_most, self.samples(step) // self.world.size))

    def weight(self, step: int, count: int) -> float:
        """Return the weight of the loss of `count` samples in the mean over ranks."""
        return count * self.world.size / self.samples(step)

    def mean(self, loss: Tensor, scalars: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the means over ranks of the weighted loss and scalars."""
        sums = self.world.sum([float(loss), *map(float, scalars.values())])
        means = [torch.tensor(total / self.world.size, dtype=torch.float64) for total in sums]
        return means[0], dict(zip(scalars, means[1:]))


class DdpEngine:
    """torch's DistributedDataParallel: every process has the whole network."""

    def __init__(self, task: Task, drops_blocks: bool) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.task = task
        with warnings.catch_warnings():
            # its replacement is not in every supported version of torch
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            self.module = DistributedDataParallel(
                task,
                # each rank has its own running statistics; those of rank 0 are saved
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # otherwise ranks wait for blocks that only some of them drop
                find_unused_parameters=drops_blocks,
            )
        self.started = False

    def loss(self, batch: Batch, last: bool) -> Tensor:
        if not self.started:
            self._start(batch)
        with nullcontext() if last else self.module.no_sync():
            loss: Tensor = self.module(batch)
        return loss

    def _start(self, batch: Batch) -> None:
        """Run a backward pass with zero gradients.

        DDP rebuilds its buckets after the first pass, which changes the order of summation over
        ranks. With this pass, a resumed run sums in the same order as an uninterrupted one.
        """
        self.started = True
        buffers = [buffer.clone() for buffer in self.task.buffers()]
        index = self.task.device.index
        with torch.random.fork_rng([] if index is None else [index]):
            (self.module(batch) * 0).backward()
        for buffer, before in zip(self.task.buffers(), buffers):
            buffer.copy_(before)
        self.module.zero_grad()

    def full_state(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        return state.state_dict()

    def full_task(self) -> Task:
        return self.task


class FsdpEngine:
    """torch's fully_shard (FSDP2): every process has a shard of each parameter."""

    def __init__(self, state: State, world: DistributedContext) -> None:
        # imported here since it takes a second
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.task = state.task
        self.copy = deepcopy(state.task)
        mesh = init_device_mesh(state.task.device.type, (world.size,))
        for parameter in state.task.parameters():
            parameter.data = parameter.data.contiguous()  # shards need this layout
        with _resharded(state):
            for module in state.task.modules():
                if isinstance(module, ResidualBlock):
                    fully_shard(module, mesh=mesh)
            fully_shard(state.task, mesh=mesh)

    def loss(self, batch: Batch, last: bool) -> Tensor:
        self.task.set_requires_gradient_sync(last)  # type: ignore[operator]
        loss: Tensor = self.task(batch)
        return loss

    def full_state(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any
        optimizer_state: Any
        weights, optimizer_state = get_state_dict(state.task, state.optimizer, options=options)
        optimizer = {
            f"{name}.{key}": tensor
            for name, values in optimizer_state.get("state", {}).items()
            for key, tensor in values.items()
        }
        return {"weights": weights, "optimizer": optimizer}, state.state_dict()[1]

    def full_task(self) -> Task:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
        )

        weights = get_model_state_dict(self.task, options=StateDictOptions(full_state_dict=True))
        self.copy.load_state_dict(weights)
        return self.copy


def engine_of(recipe: Recipe, state: State, world: DistributedContext) -> Engine:
    """Return the recipe's engine for a state that is the same on every rank.

    Raises UserError for what FSDP2 does not support, or if triplets or a method need more images
    per process.
    """
    _check_triplets(recipe, world)
    check_processes(recipe, world.size)
    spec = build.spec_of(recipe.net)
    drops = spec.drop_path > 0 and spec.drop_mode == "batch"
    if recipe.device.parallel == "ddp":
        return DdpEngine(state.task, drops)
    if drops:
        raise UserError(
            '[device] parallel = "fsdp" does not support net.drop_mode = "batch"; use '
            'net.drop_mode = "row" or parallel = "ddp"'
        )
    if recipe.device.memory != "keep":
        raise UserError(
            f'[device] parallel = "fsdp" does not support memory = "{recipe.device.memory}"; use '
            'memory = "keep" or parallel = "ddp"'
        )
    if recipe.optim.ema:
        raise UserError('[device] parallel = "fsdp" does not support optim.ema; use "ddp"')
    if recipe.optim.kind not in ("sgd", "adamw"):
        raise UserError(
            f'[device] parallel = "fsdp": {recipe.optim.kind} needs whole matrices; use "ddp"'
        )
    return FsdpEngine(state, world)


def _check_triplets(recipe: Recipe, world: DistributedContext) -> None:
    """Raise UserError if triplets are trained on less than two classes per process."""
    task, per_class = recipe.task, getattr(recipe.data, "samples_per_class", 1)
    count = recipe.batch_size // world.size
    if task.kind == "embed" and task.loss == "triplet" and count < 2 * per_class:
        raise UserError(
            f'[task] loss = "triplet" needs two classes in each of {world.size} processes: '
            f"batch_size = {2 * per_class * world.size} or more"
        )


@contextmanager
def _resharded(state: State) -> Iterator[None]:
    """Replace the optimizer's parameters and state by shards, after the block sharded the task."""
    optimizer = state.optimizer
    names: dict[Tensor, str] = {p: name for name, p in state.task.named_parameters()}
    yield
    from torch.distributed.tensor import DTensor, distribute_tensor

    shards: dict[str, DTensor] = dict(state.task.named_parameters())  # type: ignore[arg-type]
    saved = {names[parameter]: values for parameter, values in optimizer.state.items()}
    for group in optimizer.param_groups:
        group["params"] = [shards[names[parameter]] for parameter in group["params"]]
        group["fused"] = False  # torch has no fused kernel for shards
    optimizer.state.clear()
    for name, values in saved.items():
        shard = shards[name]
        optimizer.state[shard] = {
            # distribute_tensor splits other layouts wrongly
            key: distribute_tensor(value.contiguous(), shard.device_mesh, shard.placements)
            if value.shape == shard.shape
            else value.cpu()
            for key, value in values.items()
        }
