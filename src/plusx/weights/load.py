"""Loading of tensors into a network, and a report of missing and mismatched ones."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.weights.rules import rename


MAX_LISTED = 5  # names in a message, of each kind of mismatch
MAX_COMPARED = 2000  # names among which the nearest is searched


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded, and which were not."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # in the network, not in the file
    unused: tuple[str, ...]  # in the file, not in the network
    mismatched: Mapping[str, str]  # names in both, with the difference
    parameters: int
    loaded_parameters: int
    nearest: Mapping[str, str]  # most similar name, for the first missing and unused names

    @property
    def share(self) -> float:
        """The fraction of the parameters that were loaded."""
        return self.loaded_parameters / self.parameters if self.parameters else 1.0

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network and of the file was loaded."""
        return not (self.missing or self.unused or self.mismatched)

    def __str__(self) -> str:
        count = f"{self.loaded_parameters:,} of {self.parameters:,}"
        texts = [f"{100 * self.share:.1f} % of the parameters fit ({count})"]
        for kind, names in (("missing", self.missing), ("unused", self.unused)):
            if names:
                items = [
                    f"{name} (nearest: {self.nearest[name]})" if name in self.nearest else name
                    for name in names[:MAX_LISTED]
                ]
                texts.append(f"{len(names)} {kind}: {_listed(items, len(names))}")
        if self.mismatched:
            items = [f"{name} {why}" for name, why in list(self.mismatched.items())[:MAX_LISTED]]
            mismatched = len(self.mismatched)
            texts.append(f"{mismatched} of wrong shape or type: {_listed(items, mismatched)}")
        return "; ".join(texts)


def load_weights(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "plusx",
    strict: bool = True,
) -> LoadReport:
    """Copy `tensors` into `net`, renamed by the rules of `source`.

    Raises UserError, and loads nothing, if a tensor is missing, unused or mismatched; with
    `strict=False` only if none fits. Raises UserError for numbers that are not finite.
    """
    state = net.state_dict()
    renamed = rename(tensors, source, state)
    report = compare(net, renamed)
    if strict and not report.complete:
        raise UserError(f"the weights do not fit the network: {report}")
    if report.loaded_parameters == 0 and report.parameters:
        raise UserError(f"no weight fits the network: {report}")
    check_finite({name: renamed[name] for name in report.loaded if name in renamed})
    with torch.no_grad():
        for name in report.loaded:
            if name in renamed:
                state[name].copy_(renamed[name])
            else:
                state[name].zero_()
    return report


def compare(net: nn.Module, renamed: Mapping[str, Tensor]) -> LoadReport:
    """Compare renamed tensors with those of the network, without loading them.

    `num_batches_tracked` may be missing, as it is in old files; it then starts at 0.
    """
    state = net.state_dict()
    parameters = {name: parameter.numel() for name, parameter in net.named_parameters()}
    loaded, missing, mismatched = [], [], {}
    for name, tensor in state.items():
        if name in renamed:
            if why := _mismatch(renamed[name], tensor):
                mismatched[name] = why
            else:
                loaded.append(name)
        elif name.endswith(".num_batches_tracked"):
            loaded.append(name)
        else:
            missing.append(name)
    unused = [name for name in renamed if name not in state]
    nearest = _nearest(missing[:MAX_LISTED], unused) | _nearest(
        unused[:MAX_LISTED], missing or list(state)
    )
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
    """Raise UserError that names the first tensor with an infinite number or NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"the tensor {name!r} has {bad:,} numbers that are not finite")


def _mismatch(tensor: Tensor, expected: Tensor) -> str:
    if tensor.shape != expected.shape:
        hint = ", transposed?" if tensor.shape == expected.shape[::-1] else ""
        return f"is {_shape(tensor)}, not {_shape(expected)}{hint}"
    if tensor.is_floating_point() != expected.is_floating_point() or tensor.is_complex():
        return f"is of type {_type(tensor)}, not {_type(expected)}"
    return ""


def _nearest(names: Iterable[str], others: list[str]) -> dict[str, str]:
    nearest = {}
    for name in names:
        if close := difflib.get_close_matches(name, others[:MAX_COMPARED], 1):
            nearest[name] = close[0]
    return nearest


def _listed(texts: list[str], count: int) -> str:
    return ", ".join(texts) + (", ..." if count > len(texts) else "")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
