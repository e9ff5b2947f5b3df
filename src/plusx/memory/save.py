"""Plans that compute activations again instead of keeping them, by torch's selective checkpoints.

A region of the network (its stem, a stage, a block) keeps its input and the results of heavy
convolutions; everything else is computed again when the backward pass reaches it. With "segments"
every block of a stage is a region within a region.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from plusx.errors import UserError
from plusx.grammar.memory import GROUP, KEPT_MULTIPLY_ADDS, PLANS
from plusx.memory.count import WatchResults, counting
from plusx.nn.frozen import running_statistics_kept
from plusx.nn.network import Network


Net = TypeVar("Net", bound=nn.Module)

aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution.default, aten._convolution.default}
PRODUCTS = {aten.addmm.default, aten.mm.default, aten.bmm.default}
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def save_memory(net: Net, plan: str) -> Net:
    """Let a network hold less for the backward pass, and return it; results stay the same.

    "recompute" holds about half: the results of convolutions are kept, cheap ones and all else
    computed again. "segments" holds about a fifth: only the heaviest convolutions are kept.
    "keep" is PyTorch's own way. Works for networks built from a spec, with or without a head, and
    for External ones but RevNets. Gradients differ by rounding only; running statistics and random
    numbers not at all.

    UserError: no such plan, or a RevNet, which computes its activations again already.
    """
    if plan not in PLANS:
        near = get_close_matches(plan, PLANS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"no plan {plan!r}: there are {', '.join(map(repr, PLANS))}{hint}")
    chosen_plan = PLANS[PLANS.index(plan)]
    if chosen_plan != "keep" and any(
        getattr(module, "reverses", False) for module in net.modules()
    ):
        raise UserError("save_memory does not support RevNets: they recompute activations already")
    for module in net.modules():
        for name in ("forward", "run_stem"):
            if isinstance(vars(module).get(name), Region | Regions):
                delattr(module, name)
    if chosen_plan == "keep":
        return net
    backbone: Any = getattr(net, "backbone", net)
    # networks that are not built from a spec may overwrite what their convolutions give
    threshold = KEPT_MULTIPLY_ADDS[chosen_plan] if isinstance(backbone, Network) else None
    if getattr(backbone, "stem", None):
        backbone.run_stem = Region(backbone, "run_stem", threshold)
    for name, stage in backbone.named_children():
        if name == "fc" or not _layers(stage) or isinstance(stage, LAYERS):
            continue
        in_groups = chosen_plan == "recompute" and isinstance(stage, nn.Sequential)
        attached: Any = stage
        attached.forward = (
            Regions(attached, threshold) if in_groups else Region(stage, "forward", threshold)
        )
        if chosen_plan == "segments" and isinstance(stage, nn.Sequential):
            for block in stage:
                if _layers(block) > 1:
                    block.forward = Region(block, "forward", None)
    return net


def _layers(module: nn.Module) -> int:
    """How many convolutions and linear layers it has."""
    return sum(isinstance(part, LAYERS) for part in module.modules())


class Regions:
    """The blocks of a stage, GROUP at a time as a region."""

    def __init__(self, stage: nn.Sequential, threshold: int | None) -> None:
        starts = range(0, len(stage), GROUP)
        self.regions = [Region(stage[i : i + GROUP], "forward", threshold) for i in starts]

    def __call__(self, x: Any) -> Any:
        for region in self.regions:
            x = region(x)
        return x


class Region:
    """A method of a module whose activations are computed again in the backward pass.

    It replaces the method in the module's instance. threshold: results of convolutions with more
    multiply-adds per value are stored; None: none are.
    """

    def __init__(self, module: nn.Module, method: str, threshold: int | None) -> None:
        self.module, self.method, self.threshold = module, method, threshold

    def __call__(self, *inputs: Any) -> Any:
        run: Callable[..., Any] = getattr(type(self.module), self.method)
        if not torch.is_grad_enabled():
            return run(self.module, *inputs)
        return checkpoint(
            run,
            self.module,
            *inputs,
            use_reentrant=False,
            context_fn=self.contexts,
            preserve_rng_state=random(self.module),
        )

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What the forward pass and the recomputation run in."""
        if self.threshold is None:
            return nullcontext(), recomputing(self.module, nullcontext())
        caching, cached = create_selective_checkpoint_contexts(self.policy)
        return caching, recomputing(self.module, cached)

    def policy(
        self, context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        """Keep the results of heavy convolutions, compute all else again."""
        assert self.threshold is not None
        heavy = operation in ATTENTION
        if operation in CONVOLUTIONS:
            heavy = args[1][0].numel() > self.threshold
        elif operation in PRODUCTS:
            heavy = args[-1].shape[-2] > self.threshold
        if not heavy:
            return CheckpointPolicy.PREFER_RECOMPUTE
        if (saved := counting.get()) is not None:
            for result in tree_leaves(context.op_output):
                if isinstance(result, Tensor):
                    saved.watch(result)
        return CheckpointPolicy.MUST_SAVE


@contextmanager
def recomputing(module: nn.Module, cached: AbstractContextManager[Any]) -> Iterator[None]:
    """A second forward pass that leaves the running statistics of batch norms as they are."""
    saved = counting.get()
    watching = nullcontext() if saved is None else WatchResults(saved)
    with running_statistics_kept(module), watching, cached:
        yield


def random(module: nn.Module) -> bool:
    """Whether a forward pass draws random numbers, which the recomputation has to draw again."""
    return any(
        (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
        or getattr(part, "drop", 0.0) > 0
        for part in module.modules()
    )
