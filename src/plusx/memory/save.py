"""Memory plans, which recompute activations by torch's selective checkpointing.

A region of the network (its stem, a stage, a block) saves its input and the outputs of heavy
convolutions; everything else is recomputed in the backward pass. With "segments" every block of a
stage is a region within a region.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

from plusx.errors import UserError, did_you_mean
from plusx.grammar.memory import GROUP, PLANS, STORED_MULTIPLY_ADDS
from plusx.memory.count import CountResults, counting
from plusx.nn.frozen import frozen_running_statistics
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
    """Let a network save less for the backward pass, and return it; results do not change.

    "recompute" needs about half: only outputs of expensive convolutions are saved. "segments" needs
    about a fifth: only those of the most expensive convolutions. "keep" is PyTorch's default.
    Supported are networks built from a spec, with or without a head, and External ones except
    RevNets. Gradients differ by rounding only; running statistics and random numbers do not differ.
    Raises UserError for an unknown plan, or for a RevNet, which already recomputes activations.
    """
    if plan not in PLANS:
        hint = did_you_mean(plan, PLANS)
        raise UserError(f"no plan {plan!r}: there are {', '.join(PLANS)}{hint}")
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
    # external networks may overwrite the outputs of their convolutions
    threshold = STORED_MULTIPLY_ADDS[chosen_plan] if isinstance(backbone, Network) else None
    if getattr(backbone, "stem", None):
        backbone.run_stem = Region(backbone, "run_stem", threshold)
    for name, stage in backbone.named_children():
        if name == "fc" or not _layers(stage) or isinstance(stage, LAYERS):
            continue
        in_groups = chosen_plan == "recompute" and isinstance(stage, nn.Sequential)
        region_owner: Any = stage
        region_owner.forward = (
            Regions(region_owner, threshold) if in_groups else Region(stage, "forward", threshold)
        )
        if chosen_plan == "segments" and isinstance(stage, nn.Sequential):
            for block in stage:
                if _layers(block) > 1:
                    block.forward = Region(block, "forward", None)
    return net


def _layers(module: nn.Module) -> int:
    """Return the number of convolutions and linear layers."""
    return sum(isinstance(layer, LAYERS) for layer in module.modules())


class Regions:
    """The blocks of a stage, in regions of GROUP blocks."""

    def __init__(self, stage: nn.Sequential, threshold: int | None) -> None:
        starts = range(0, len(stage), GROUP)
        self.regions = [Region(stage[i : i + GROUP], "forward", threshold) for i in starts]

    def __call__(self, x: Any) -> Any:
        for region in self.regions:
            x = region(x)
        return x


class Region:
    """A method of a module whose activations are recomputed in the backward pass.

    It replaces the method in the module's instance. threshold: outputs of convolutions with more
    multiply-adds per value are saved; None: none are.
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
            preserve_rng_state=draws_random_numbers(self.module),
        )

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Return the contexts of the forward pass and of the recomputation."""
        if self.threshold is None:
            return nullcontext(), recomputing(self.module, nullcontext())
        caching, cached = create_selective_checkpoint_contexts(self.policy)
        return caching, recomputing(self.module, cached)

    def policy(
        self, context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        """Save the outputs of heavy convolutions, recompute everything else."""
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
                    saved.add(result)
        return CheckpointPolicy.MUST_SAVE


@contextmanager
def recomputing(module: nn.Module, cached: AbstractContextManager[Any]) -> Iterator[None]:
    """The context of a second forward pass, which must not update running statistics."""
    saved = counting.get()
    counting_mode = nullcontext() if saved is None else CountResults(saved)
    with frozen_running_statistics(module), counting_mode, cached:
        yield


def draws_random_numbers(module: nn.Module) -> bool:
    """Whether a forward pass draws random numbers, which the recomputation must reproduce."""
    return any(
        (isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0)
        or getattr(layer, "drop", 0.0) > 0
        for layer in module.modules()
    )
