"""One update by all processes of a world: DistributedDataParallel, or FSDP2 with sharded state."""

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
from plusx.tasks.task import Task
from plusx.train.state import State, Tensors


@runtime_checkable
class Engine(Protocol):
    """How the processes hold the network, and how their gradients come together."""

    def loss(self, batch: Batch, last: bool) -> Tensor:
        """The task's loss; with `last`, its backward pass makes gradients the mean over ranks."""

    def whole(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        """All of the state as one process would have it; every rank has to ask for it."""

    def plain(self) -> Task:
        """The task with the whole of its weights, to be evaluated; every rank has to ask for it."""


class Reducer:
    """What an update of all processes needs (train.update.DistributedReducer)."""

    def __init__(
        self, world: DistributedContext, engine: Engine, samples: Callable[[int], int]
    ) -> None:
        self.world, self.engine = world, engine
        self.samples = samples  # from the step to the samples of its whole batch

    def loss(self, batch: Batch, last: bool) -> Tensor:
        return self.engine.loss(batch, last)

    def parts(self, step: int, at_most: int) -> int:
        """No more than the smallest share has samples.

        With every part shards are gathered from all ranks, who would wait for one that has fewer.
        """
        return max(1, min(at_most, self.samples(step) // self.world.size))

    def weight(self, step: int, count: int) -> float:
        """What the loss of `count` samples counts, so that the mean over ranks is the batch's."""
        return count * self.world.size / self.samples(step)

    def mean(self, loss: Tensor, scalars: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the ranks of what each has weighted."""
        sums = self.world.sum([float(loss), *map(float, scalars.values())])
        means = [torch.tensor(each / self.world.size, dtype=torch.float64) for each in sums]
        return means[0], dict(zip(scalars, means[1:]))


class DdpEngine:
    """Every process holds the whole network: torch's DistributedDataParallel."""

    def __init__(self, task: Task, drops_blocks: bool) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.task = task
        with warnings.catch_warnings():
            # its successor is not in every version of torch that we run with
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            self.module = DistributedDataParallel(
                task,
                # each rank has running statistics of its own; rank 0's are kept
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # a block that this rank drops and another does not is waited for otherwise
                find_unused_parameters=drops_blocks,
            )
        self.begun = False

    def loss(self, batch: Batch, last: bool) -> Tensor:
        if not self.begun:
            self._begin(batch)
        with nullcontext() if last else self.module.no_sync():
            loss: Tensor = self.module(batch)
        return loss

    def _begin(self, batch: Batch) -> None:
        """A pass that moves nothing.

        After the first one DDP lays its buckets out anew, and with them the order in which three
        or more ranks are summed. So a run that goes on sums as one that was never interrupted.
        """
        self.begun = True
        buffers = [buffer.clone() for buffer in self.task.buffers()]
        index = self.task.device.index
        with torch.random.fork_rng([] if index is None else [index]):
            (self.module(batch) * 0).backward()
        for buffer, before in zip(self.task.buffers(), buffers):
            buffer.copy_(before)
        self.module.zero_grad()

    def whole(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        return state.state_dict()

    def plain(self) -> Task:
        return self.task


class FsdpEngine:
    """Every process holds a part of each parameter: torch's fully_shard (FSDP2)."""

    def __init__(self, state: State, world: DistributedContext) -> None:
        # which one process alone does not wait for: it takes torch a second to load this
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.task = state.task
        self.copy = deepcopy(state.task)
        mesh = init_device_mesh(state.task.device.type, (world.size,))
        for parameter in state.task.parameters():
            parameter.data = parameter.data.contiguous()  # shards know no other layout
        with _resharded(state):
            for module in state.task.modules():
                if isinstance(module, ResidualBlock):
                    fully_shard(module, mesh=mesh)
            fully_shard(state.task, mesh=mesh)

    def loss(self, batch: Batch, last: bool) -> Tensor:
        self.task.set_requires_gradient_sync(last)  # type: ignore[operator]
        loss: Tensor = self.task(batch)
        return loss

    def whole(self, state: State) -> tuple[Tensors, dict[str, Any]]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole: Any = get_state_dict(state.task, state.optimizer, options=options)
        weights, moved = whole
        optimizer = {
            f"{name}.{key}": tensor
            for name, kept in moved.get("state", {}).items()
            for key, tensor in kept.items()
        }
        _, values = state.state_dict()
        return {"weights": weights, "optimizer": optimizer}, values

    def plain(self) -> Task:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
        )

        whole = get_model_state_dict(self.task, options=StateDictOptions(full_state_dict=True))
        self.copy.load_state_dict(whole)
        return self.copy


def engine_of(recipe: Recipe, state: State, world: DistributedContext) -> Engine:
    """The recipe's engine over a state that is the same on every rank.

    UserError: what FSDP2 cannot do, or shares that teach nothing.
    """
    _refuse_lone_people(recipe, world)
    spec = build.spec_of(recipe.net)
    drops = spec.drop_path > 0 and spec.drop_mode == "batch"
    if recipe.device.parallel == "ddp":
        return DdpEngine(state.task, drops)
    if drops:
        raise UserError(
            '[device] parallel = "fsdp": blocks that a rank drops have no gradients to be shared; '
            'net.drop_mode = "row" or parallel = "ddp" have'
        )
    if recipe.device.memory != "keep":
        raise UserError(
            f'[device] parallel = "fsdp" with memory = "{recipe.device.memory}": values cannot be '
            'made again of weights that have left the process; choose one of the two, or "ddp"'
        )
    if recipe.optim.ema:
        raise UserError('[device] parallel = "fsdp" keeps no average: take "ddp"')
    if recipe.optim.kind not in ("sgd", "adamw"):
        raise UserError(
            f'[device] parallel = "fsdp": {recipe.optim.kind} needs whole matrices; take "ddp"'
        )
    return FsdpEngine(state, world)


def _refuse_lone_people(recipe: Recipe, world: DistributedContext) -> None:
    """UserError where triplets have nobody to compare a person with in a rank's share."""
    task, pictures = recipe.task, getattr(recipe.data, "samples_per_class", 1)
    share = recipe.batch_size // world.size
    if task.kind == "embed" and task.loss == "triplet" and share < 2 * pictures:
        raise UserError(
            f'[task] loss = "triplet" compares within the {share} images of each of {world.size} '
            f"processes, which need two people: batch_size = {2 * pictures * world.size} would do"
        )


@contextmanager
def _resharded(state: State) -> Iterator[None]:
    """Inside, the parameters of the task are sharded; afterwards the optimizer moves the shards."""
    optimizer = state.optimizer
    names: dict[Tensor, str] = {p: name for name, p in state.task.named_parameters()}
    yield
    from torch.distributed.tensor import DTensor, distribute_tensor

    shards: dict[str, DTensor] = dict(state.task.named_parameters())  # type: ignore[arg-type]
    kept = {names[parameter]: values for parameter, values in optimizer.state.items()}
    for group in optimizer.param_groups:
        group["params"] = [shards[names[parameter]] for parameter in group["params"]]
        group["fused"] = False  # torch has no such kernel for shards
    optimizer.state.clear()
    for name, values in kept.items():
        shard = shards[name]
        optimizer.state[shard] = {
            # contiguous: of another layout it would be taken apart wrongly
            key: distribute_tensor(value.contiguous(), shard.device_mesh, shard.placements)
            if value.shape == shard.shape
            else value.cpu()
            for key, value in values.items()
        }
