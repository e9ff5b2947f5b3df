"""Put tensors into a network: all of them, or a report of what did not fit."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.weights.rules import rename


NAMED = 5  # so many names are listed of each kind of trouble
COMPARED = 2000  # and each is compared with so many others for the nearest


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors. `share` is the part of the parameters that was loaded."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # the network has them, the file does not
    unused: tuple[str, ...]  # the file has them, the network does not
    mismatched: Mapping[str, str]  # both have them, and why they differ
    parameters: int
    loaded_parameters: int
    nearest: Mapping[str, str]  # of the first missing and unused names

    @property
    def share(self) -> float:
        return self.loaded_parameters / self.parameters if self.parameters else 1.0

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unused or self.mismatched)

    def __str__(self) -> str:
        count = f"{self.loaded_parameters:,} of {self.parameters:,}"
        parts = [f"{100 * self.share:.1f} % of the parameters fit ({count})"]
        for kind, names in (("missing", self.missing), ("unused", self.unused)):
            if names:
                texts = [
                    f"{name} (nearest: {self.nearest[name]})" if name in self.nearest else name
                    for name in names[:NAMED]
                ]
                parts.append(f"{len(names)} {kind}: {_listed(texts, len(names))}")
        if self.mismatched:
            texts = [f"{name} {why}" for name, why in list(self.mismatched.items())[:NAMED]]
            mismatched = len(self.mismatched)
            parts.append(f"{mismatched} of wrong shape or type: {_listed(texts, mismatched)}")
        return "; ".join(parts)


def load_weights(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "plusx",
    strict: bool = True,
) -> LoadReport:
    """Copy `tensors` into `net`, renamed by the rules of `source`.

    Strictly (the default) every tensor of either side has its partner, or UserError says which
    have not and nothing is loaded. Otherwise what fits is loaded, and the report says how much that
    was; nothing at all is an error. Numbers that are not finite are refused.
    """
    given = rename(tensors, source, net.state_dict())
    report = compare(net, given)
    if strict and not report.complete:
        raise UserError(f"the weights do not fit the network: {report}")
    if report.loaded_parameters == 0 and report.parameters:
        raise UserError(f"no weight fits the network: {report}")
    ours = net.state_dict()
    check_finite({name: given[name] for name in report.loaded if name in given})
    with torch.no_grad():
        for name in report.loaded:
            if name in given:
                ours[name].copy_(given[name])
            else:
                ours[name].zero_()
    return report


def compare(net: nn.Module, given: Mapping[str, Tensor]) -> LoadReport:
    """What would become of `given` (already renamed), without loading it.

    A batch norm's count of batches is not asked for: files from before it existed lack it, and it
    then starts at 0.
    """
    ours = net.state_dict()
    parameters = {name: parameter.numel() for name, parameter in net.named_parameters()}
    loaded, missing, mismatched = [], [], {}
    for name, tensor in ours.items():
        if name in given:
            if why := _mismatch(given[name], tensor):
                mismatched[name] = why
            else:
                loaded.append(name)
        elif name.endswith(".num_batches_tracked"):
            loaded.append(name)
        else:
            missing.append(name)
    unused = [name for name in given if name not in ours]
    nearest = _nearest(missing[:NAMED], unused) | _nearest(unused[:NAMED], missing or list(ours))
    return LoadReport(
        loaded=tuple(loaded),
        missing=tuple(missing),
        unused=tuple(unused),
        mismatched=mismatched,
        parameters=sum(parameters.values()),
        loaded_parameters=sum(parameters.get(name, 0) for name in loaded),
        nearest=nearest,
    )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError naming the first tensor with a number that is infinite or none at all."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"the tensor {name!r} has {bad:,} numbers that are not finite")


def _mismatch(given: Tensor, ours: Tensor) -> str:
    if given.shape != ours.shape:
        hint = ", transposed?" if given.shape == ours.shape[::-1] else ""
        return f"is {_shape(given)}, not {_shape(ours)}{hint}"
    if given.is_floating_point() != ours.is_floating_point() or given.is_complex():
        return f"is of type {_type(given)}, not {_type(ours)}"
    return ""


def _nearest(names: Iterable[str], others: list[str]) -> dict[str, str]:
    nearest = {}
    for name in names:
        if close := difflib.get_close_matches(name, others[:COMPARED], 1):
            nearest[name] = close[0]
    return nearest


def _listed(texts: list[str], count: int) -> str:
    return ", ".join(texts) + (", ..." if count > len(texts) else "")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
