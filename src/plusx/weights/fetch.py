"""Loading of weight files, and of torchvision's published weights by their name.

Published weights are downloaded once, checked, converted, and cached.
"""

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
from plusx.weights.files import Weights, read_weights, set_preprocessing
from plusx.weights.input_conv import adapt_input_conv
from plusx.weights.load import LoadReport, load_weights
from plusx.weights.published import Published, published, published_names


NAME = re.compile(r"(?:\w+_Weights\.)?[A-Z][A-Z0-9_]*")


def load_named_or_file(
    net: Backbone, model: str | None, weights: str | Path, *, new_head: bool = False
) -> LoadReport:
    """Load torchvision's weights by their name ("IMAGENET1K_V2"), or a safetensors file.

    All tensors must match; with `new_head`, a network with another number of classes than the
    weights keeps its initialised head. Raises UserError if the weights are for another network,
    OSError if they cannot be downloaded.
    """
    return load_into(net, model, find_weights(model, weights), new_head=new_head)


def find_weights(model: str | None, weights: str | Path) -> Weights:
    """Open a file, or the published weights of that name for the zoo network `model`."""
    if isinstance(weights, str) and NAME.fullmatch(weights) and not Path(weights).exists():
        if model is None:
            raise UserError(f"there is no file {weights!r}, and a spec has no published weights")
        return read_weights(fetch(published(model, weights)))
    names = published_names(model) if model else ()
    if names and not Path(weights).exists():
        raise UserError(f"there is no file {weights}; published for {model}: {', '.join(names)}")
    return read_weights(weights)


def model_of_file(weights: Weights, model: Model) -> Model:
    """Return the model that a weight file describes; `model` if it describes no whole one."""
    if isinstance(model, WithHead):
        if weights.head is None:
            return model
        return replace(model, head=weights.head, num_classes=weights.head_classes)
    return model if weights.head is not None or weights.spec is None else weights.spec


def load_into(
    net: Backbone, model: str | None, weights: Weights, *, new_head: bool = False
) -> LoadReport:
    """Load opened weights into a network; see `load_named_or_file`.

    With `new_head`, only the backbone is loaded if the heads of network and weights differ. The
    first convolution is adapted to the input channels by `adapt_input_conv`.
    """
    _check_same(net, model, weights)
    weights = replace(weights, tensors=adapt_input_conv(net, weights.tensors))
    if net.head_spec is not None or weights.head is not None:
        report = _load_with_head(net, weights, new_head)
    else:
        report = _load_linear(net, weights.tensors, new_head)
    set_preprocessing(net, weights)
    return report


def _load_linear(net: Backbone, tensors: Mapping[str, Tensor], new_head: bool) -> LoadReport:
    head = tensors.get("fc.weight")
    if head is None and new_head and net.num_classes:
        return _load_except(net, tensors, "fc", "is new, the weights have no head")
    if not new_head or head is None or head.shape[:1] == (net.num_classes,):
        return load_weights(net, tensors)
    tensors = {n: t for n, t in tensors.items() if n not in ("fc.weight", "fc.bias")}
    reason = f"is for {head.shape[0]} classes, the network has {net.num_classes}"
    return _load_except(net, tensors, "fc", reason)


def _load_with_head(net: Backbone, weights: Weights, new_head: bool) -> LoadReport:
    """Load weights if the network, the file or both have a head for detection or segmentation."""
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
        # the tail and the linear head of the file are not used
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
    """Load the tensors; the head's parameters that are missing keep their initialisation.

    The linear layers of a tail count as the linear head.
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
    """Return the path of published weights in the cache, converted to a safetensors file.

    A cached file is used if its digest matches; so is the original file, if a user put it there.
    Raises OSError if the file cannot be downloaded or its digest differs; the message states the
    address, and the path for a file downloaded by hand.
    """
    folder = store.make_folder(store.cache_folder() / "weights")
    with _locked(folder):
        return _fetch_locked(item, folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, so that only one of several processes downloads a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch_locked(item: Published, folder: Path) -> Path:
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
    """Raise UserError if the shapes may fit, but the weights are of another network."""
    if weights.spec is None:
        return
    head, spec, file_spec = net.head_spec, net.base.spec, weights.spec
    if isinstance(spec, Net) and isinstance(file_spec, Net):
        spec = backbone_of(spec, weights.head) if weights.head is not None else spec
        file_spec = backbone_of(file_spec, head) if head is not None else file_spec
        differing = _difference(_essence(spec), _essence(file_spec))
        if not differing:
            return
        if model in (weights.model, None):
            hint = "plusx.weights.open_network builds the file's own"
            raise UserError(f"the weights are for another network than this: {differing}; {hint}")
    elif getattr(spec, "name", "") == getattr(file_spec, "name", None):
        return
    name = weights.model or getattr(file_spec, "name", "a spec of its own")
    raise UserError(f"the weights are for {name}, not for {model or 'the given spec'}")


def _difference(spec: Any, file_spec: Any) -> str:
    """Return the first field in which two specs, stages or blocks differ, or ""."""
    for name in type(spec).__dataclass_fields__:
        a, b = getattr(spec, name), getattr(file_spec, name)
        if a == b:
            continue
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            i = next(i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1])
            name, a, b = f"{name}[{i}]", a[i], b[i]
        if isinstance(a, Stage | Block) and type(a) is type(b):
            return f"{name}.{_difference(a, b)}"
        return f"{name} {b!r}, here {a!r}"
    return ""


def _essence(net: Net) -> Net:
    """Return the spec without what weights do not depend on: classes, sizes, stochastic depth."""
    return replace(net, num_classes=0, in_channels=1, size=1, drop_path=0.0, drop_mode="batch")
