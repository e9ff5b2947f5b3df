"""Frozen parameters and norms, and the depth of parameters.

Depth counts from 0, the stem, over the stages to the head, which is one more than the last stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plusx.errors import UserError


# stages of networks whose module names do not contain them
_STAGES: dict[str, dict[str, int]] = {
    "googlenet": {"conv": 1, "inception3": 2, "inception4": 3, "inception5": 4}
}


class _Frozen(_BatchNorm):
    """A batch norm that stays in evaluation mode, so that its statistics do not change."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that stays in evaluation mode, with the same names."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that stays in evaluation mode, with the same names."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that stays in evaluation mode, with the same names."""


_FROZEN: dict[type[nn.Module], type[_Frozen]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}


@contextmanager
def frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Do not update running statistics inside the context, for a second forward pass of the same
    inputs."""
    norms = [
        submodule
        for submodule in module.modules()
        if isinstance(submodule, _BatchNorm) and submodule.training
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def freeze_norms(module: nn.Module) -> int:
    """Freeze statistics and parameters of all batch norms; return their number. The modules become
    subclasses of themselves: names, weights and outputs in evaluation mode do not change."""
    count = 0
    for submodule in module.modules():
        frozen = _FROZEN.get(type(submodule))
        if frozen is not None:
            submodule.__class__ = frozen
        if isinstance(submodule, _Frozen):
            submodule.eval()
            submodule.requires_grad_(False)
            count += 1
    return count


def freeze_below(net: nn.Module, depth: int) -> None:
    """Freeze everything of smaller depth than `depth`: parameters, and statistics of norms."""
    depths = depths_of(net)
    for name, parameter in net.named_parameters():
        if depths[name] < depth:
            parameter.requires_grad_(False)
    depth_of = _depth_by_name(net)
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and depth_of(name) < depth:
            freeze_norms(module)


def depths_of(net: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by name."""
    depth_of = _depth_by_name(net)
    return {name: depth_of(name) for name, _ in net.named_parameters()}


def head_depth(net: nn.Module) -> int:
    """Return the depth of the head, one more than the number of stages."""
    return len(find_backbone(net)[1].widths) + 1  # type: ignore[arg-type]


def find_backbone(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of the network that computes the features. Raises UserError if
    there is none."""
    for name, module in net.named_modules():
        if hasattr(module, "features") and hasattr(module, "widths") and hasattr(module, "fc"):
            return name, module
    raise UserError(f"{type(net).__name__} has no stages")


def _depth_by_name(net: nn.Module) -> Callable[[str], int]:
    backbone_name, backbone = find_backbone(net)
    prefix = f"{backbone_name}." if backbone_name else ""
    num_stages = len(backbone.widths)  # type: ignore[arg-type]
    stage_prefixes = _STAGES.get(str(getattr(backbone, "name", "")))

    def depth_of(name: str) -> int:
        if not name.startswith(prefix):
            return num_stages + 1  # a head on the features
        return _stage(name.removeprefix(prefix).split(".", 1)[0], num_stages, stage_prefixes)

    return depth_of


def _stage(child: str, num_stages: int, stage_prefixes: dict[str, int] | None) -> int:
    if child == "fc":
        return num_stages + 1
    if child == "tail":
        return num_stages
    if stage_prefixes is not None:
        return next(
            (stage for start, stage in stage_prefixes.items() if child.startswith(start)),
            num_stages,
        )
    for kind in ("layer", "enter"):
        number = child.removeprefix(kind)
        if number != child and number.isdigit():
            return int(number)
    return 0


def rates_by_depth(net: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of each parameter's learning rate: 1 at the head, times `decay` per stage
    below. Howard and Ruder 2018, section 3.2, with 1 / 2.6 per layer."""
    depths, top = depths_of(net), head_depth(net)
    return {name: decay ** (top - depth) for name, depth in depths.items()}
