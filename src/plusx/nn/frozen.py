"""What of a network is not trained, and how deep each of its parameters lies.

Depth counts from 0, the stem, over the stages to the head, which is one more than the last stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plusx.errors import UserError


# stages of networks whose modules are not named after theirs
_STAGES: dict[str, dict[str, int]] = {
    "googlenet": {"conv": 1, "inception3": 2, "inception4": 3, "inception5": 4}
}


class _Frozen(_BatchNorm):
    """A batch norm that stays in evaluation mode, and so keeps its statistics."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """As `nn.BatchNorm1d`, under the same names; `train()` leaves it in evaluation mode."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, under the same names; `train()` leaves it in evaluation mode."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """As `nn.BatchNorm3d`, under the same names; `train()` leaves it in evaluation mode."""


_FROZEN: dict[type[nn.Module], type[_Frozen]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """A second forward pass of the same inputs leaves the running statistics as they are."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def freeze_norms(module: nn.Module) -> int:
    """Keep statistics and parameters of all batch norms as they are, through `train()` and steps.

    The modules become subclasses of what they are: names, weights and answers in evaluation mode
    stay. The number of norms that were frozen.
    """
    count = 0
    for part in module.modules():
        frozen = _FROZEN.get(type(part))
        if frozen is not None:
            part.__class__ = frozen
        if isinstance(part, _Frozen):
            part.eval()
            part.requires_grad_(False)
            count += 1
    return count


def freeze_below(net: nn.Module, depth: int) -> None:
    """Leave all that lies less deep than `depth` as it is: parameters, and statistics of norms."""
    depths = depths_of(net)
    for name, parameter in net.named_parameters():
        if depths[name] < depth:
            parameter.requires_grad_(False)
    at = _depth_by_name(net)
    for name, part in net.named_modules():
        if isinstance(part, _BatchNorm) and at(name) < depth:
            freeze_norms(part)


def depths_of(net: nn.Module) -> dict[str, int]:
    """How deep every parameter lies, by its name."""
    at = _depth_by_name(net)
    return {name: at(name) for name, _ in net.named_parameters()}


def head_depth(net: nn.Module) -> int:
    """The depth of the head, one more than there are stages."""
    return len(backbone_of(net)[1].widths) + 1  # type: ignore[arg-type]


def backbone_of(net: nn.Module) -> tuple[str, nn.Module]:
    """Under which name, and which network it is, that gives the features."""
    for name, part in net.named_modules():
        if hasattr(part, "features") and hasattr(part, "widths") and hasattr(part, "fc"):
            return name, part
    raise UserError(f"{type(net).__name__} has no stages")


def _depth_by_name(net: nn.Module) -> Callable[[str], int]:
    where, backbone = backbone_of(net)
    prefix = f"{where}." if where else ""
    last = len(backbone.widths)  # type: ignore[arg-type]
    plain = _STAGES.get(str(getattr(backbone, "name", "")))

    def at(name: str) -> int:
        if not name.startswith(prefix):
            return last + 1  # what stands on the features
        return _stage(name.removeprefix(prefix).split(".", 1)[0], last, plain)

    return at


def _stage(child: str, last: int, plain: dict[str, int] | None) -> int:
    if child == "fc":
        return last + 1
    if child == "tail":
        return last
    if plain is not None:
        return next((stage for start, stage in plain.items() if child.startswith(start)), last)
    for kind in ("layer", "enter"):
        number = child.removeprefix(kind)
        if number != child and number.isdigit():
            return int(number)
    return 0


def rates_by_depth(net: nn.Module, share: float) -> dict[str, float]:
    """What the rate of each parameter is multiplied with: 1 at the head, `share` less each stage.

    Howard and Ruder 2018, section 3.2, with 1 / 2.6 a layer.
    """
    depths, top = depths_of(net), head_depth(net)
    return {name: share ** (top - depth) for name, depth in depths.items()}
