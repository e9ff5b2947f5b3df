"""Weights by the name their publisher gave them: fetched once, checked, converted, kept."""

import fcntl
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx import store
from plusx.errors import UserError
from plusx.grammar.backbone import backbone_of
from plusx.grammar.model import Model, WithHead
from plusx.grammar.spec import Block, Net, Stage
from plusx.nn.network import Backbone
from plusx.weights.convert import convert
from plusx.weights.files import Weights, read_weights, remember
from plusx.weights.input_conv import adapt_input_conv
from plusx.weights.load import LoadReport, load_weights
from plusx.weights.published import Published, published, published_names


NAME = re.compile(r"(?:\w+_Weights\.)?[A-Z][A-Z0-9_]*")


def load_named_or_file(
    net: Backbone, model: str | None, weights: str | Path, *, new_head: bool = False
) -> LoadReport:
    """Load torchvision's weights by their name ("IMAGENET1K_V2"), or a safetensors file.

    Strict; but with `new_head` a network for another number of classes than the weights have keeps
    the head it was built with. UserError: the weights are for another network. OSError: they cannot
    be fetched.
    """
    return load_found(net, model, find_weights(model, weights), new_head=new_head)


def find_weights(model: str | None, weights: str | Path) -> Weights:
    """Open a file, or the published weights of that name for the network `model` of the zoo."""
    if isinstance(weights, str) and NAME.fullmatch(weights) and not Path(weights).exists():
        if model is None:
            raise UserError(f"{weights!r} names no file, and a spec has no published weights")
        return read_weights(fetch(published(model, weights)))
    names = published_names(model) if model else ()
    if names and not Path(weights).exists():
        raise UserError(f"there is no file {weights}; {model} has {', '.join(names)} to be fetched")
    return read_weights(weights)


def model_of_file(weights: Weights, model: Model) -> Model:
    """The network that a file states; `model` where it states none, or only a part of it."""
    if isinstance(model, WithHead):
        if weights.head is None:
            return model
        return replace(model, head=weights.head, num_classes=weights.head_classes)
    return model if weights.head is not None or weights.spec is None else weights.spec


def load_found(
    net: Backbone, model: str | None, weights: Weights, *, new_head: bool = False
) -> LoadReport:
    """Load what `find_weights` opened; see `load_named_or_file`.

    Where only one of the two has a head on its features, or their heads differ, `new_head` loads
    the backbone. A network for other channels than colours gets the first filters of a file for
    colours as plusx.weights.input_conv says.
    """
    _check_same(net, model, weights)
    weights = replace(weights, tensors=adapt_input_conv(net, weights.tensors))
    if net.head_spec is not None or weights.head is not None:
        report = _load_dense(net, weights, new_head)
    else:
        report = _load_linear(net, weights.tensors, new_head)
    remember(net, weights)
    return report


def _load_linear(net: Backbone, tensors: Mapping[str, Tensor], new_head: bool) -> LoadReport:
    head = tensors.get("fc.weight")
    if not new_head or head is None or head.shape[:1] == (net.num_classes,):
        return load_weights(net, tensors)
    tensors = {n: t for n, t in tensors.items() if n not in ("fc.weight", "fc.bias")}
    reason = f"is for {head.shape[0]} classes, the network has {net.num_classes}"
    return _load_except(net, tensors, "fc", reason)


def _load_dense(net: Backbone, weights: Weights, new_head: bool) -> LoadReport:
    """Load weights where the network, the file or both have a head on the features."""
    head = net.head_spec
    if weights.head == head and (not new_head or weights.head_classes == net.num_classes):
        return load_weights(net, weights.tensors)
    kind = "its own linear head" if weights.head is None else f"a head {weights.head.kind!r}"
    if not new_head:
        raise UserError(f"the weights are for a network with {kind}, not for this one's")
    prefix = "backbone."
    if head is None:
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in weights.tensors.items()
            if name.startswith(prefix)
        }
        return _load_except(net, tensors, "fc", f"is new, the weights have {kind}")
    state = net.state_dict()
    if weights.head is None:
        # the words of a tail behind the features, and the linear head, are not used
        tensors = {
            prefix + name: tensor
            for name, tensor in weights.tensors.items()
            if prefix + name in state
        }
    else:
        tensors = {
            name: tensor
            for name, tensor in weights.tensors.items()
            if name.startswith(prefix) or (name in state and state[name].shape == tensor.shape)
        }
    return _load_except(net, tensors, "head", f"is new where it differs: the file has {kind}")


def _load_except(
    net: Backbone, tensors: Mapping[str, Tensor], head: str, reason: str
) -> LoadReport:
    """Load the tensors; parameters of the head that are not among them stay as initialised.

    The linear layers of a tail belong to the linear head: features do without them.
    """
    prefixes = ("fc.", "tail.") if head == "fc" else (f"{head}.",)
    new = {
        name: tensor
        for name, tensor in net.state_dict().items()
        if name.startswith(prefixes) and name not in tensors
    }
    report = load_weights(net, {**tensors, **new})
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    return replace(
        report,
        loaded=tuple(name for name in report.loaded if name not in new),
        loaded_parameters=report.loaded_parameters - sum(sizes.get(name, 0) for name in new),
        mismatched={head: reason} if new or head == "fc" else {},
    )


def fetch(item: Published) -> Path:
    """The published weights as a safetensors file of plusx in the cache.

    A file in the cache is used while its digest holds, and so is one as published that a user put
    there. OSError: the file cannot be fetched, or is not the one that was published; the message
    has its address, and where to put it by hand.
    """
    folder = store.make_folder(store.cache_folder() / "weights")
    with waiting(folder):
        return _fetched(item, folder)


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Hold the system's lock on a folder, waiting for the process that has it: of several ranks
    one fetches a file, the others find it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetched(item: Published, folder: Path) -> Path:
    raw = folder / item.file
    converted, seal = raw.with_suffix(".safetensors"), raw.with_suffix(".sha256")
    if converted.is_file() and seal.is_file():
        if store.read_bytes(seal, 1024).decode(errors="replace").strip() == _sha256(converted):
            return converted
        warnings.warn(f"{converted} is corrupt and is converted again", stacklevel=2)
    by_hand = raw.is_file()
    if not by_hand:
        max_bytes = item.size + item.size // 10 + (1 << 20)
        store.write_bytes(raw, store.download(item.url, f"sha256:{item.digest}", max_bytes, raw))
    elif not (digest := _sha256(raw)).startswith(item.digest):
        raise OSError(
            f"{raw} is not the file that was published as {item.url}: its sha256 begins with "
            f"{digest[:8]}, not {item.digest}; delete it"
        )
    convert(raw, item.model, "torchvision", converted)
    store.write_text(seal, _sha256(converted) + "\n")
    if not by_hand:
        os.unlink(raw)
    return converted


def _sha256(path: Path) -> str:
    return hashlib.sha256(store.read_bytes(path)).hexdigest()


def _check_same(net: Backbone, model: str | None, weights: Weights) -> None:
    """UserError for weights that would fit although they were trained in another network."""
    if weights.spec is None:
        return
    head, ours, theirs = net.head_spec, net.base.spec, weights.spec
    if isinstance(ours, Net) and isinstance(theirs, Net):
        ours = backbone_of(ours, weights.head) if weights.head is not None else ours
        theirs = backbone_of(theirs, head) if head is not None else theirs
        differing = _difference(_essence(ours), _essence(theirs))
        if not differing:
            return
        if model in (weights.model, None):
            hint = "plusx.weights.open_network builds the file's own"
            raise UserError(f"the weights are for another network than this: {differing}; {hint}")
    elif getattr(ours, "name", "") == getattr(theirs, "name", None):
        return
    name = weights.model or getattr(theirs, "name", "a spec of its own")
    raise UserError(f"the weights are for {name}, not for {model or 'the given spec'}")


def _difference(ours: Any, theirs: Any) -> str:
    """The first field in which two specs, stages or blocks differ; "" where there is none."""
    for name in type(ours).__dataclass_fields__:
        one, other = getattr(ours, name), getattr(theirs, name)
        if one == other:
            continue
        if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
            i = next(i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1])
            name, one, other = f"{name}[{i}]", one[i], other[i]
        if isinstance(one, Stage | Block) and type(one) is type(other):
            return f"{name}.{_difference(one, other)}"
        return f"{name} {other!r}, here {one!r}"
    return ""


def _essence(net: Net) -> Net:
    """The spec without what weights can be moved across: classes, sizes, stochastic depth."""
    return replace(net, num_classes=0, in_channels=1, size=1, drop_path=0.0, drop_mode="batch")
