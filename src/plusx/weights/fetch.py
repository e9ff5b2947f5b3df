"""Weights by the name their publisher gave them: fetched once, checked, converted, kept."""

import fcntl
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plusx import store
from plusx.errors import UserError
from plusx.grammar.backbone import backbone_of
from plusx.grammar.model import External, Model, WithHead
from plusx.grammar.spec import Block, Net, Stage
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead
from plusx.weights.convert import convert
from plusx.weights.files import Weights, read_weights, remember
from plusx.weights.input_conv import adapt_input_conv
from plusx.weights.load import LoadReport, load_weights, outputs_of
from plusx.weights.published import Published, published, published_names


TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20
NAME = re.compile(r"(?:\w+_Weights\.)?[A-Z][A-Z0-9_]*")


def load_named_or_file(
    net: nn.Module, model: str | None, weights: str | Path, *, new_head: bool = False
) -> LoadReport:
    """Load torchvision's weights by their name ("IMAGENET1K_V2"), or a safetensors file.

    Strict; but with `new_head` a network for another number of classes than the weights have keeps
    the head it was built with. Raises UserError where the weights are for another network, and
    OSError where they cannot be fetched.
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


def own_spec(found: Weights, spec: Net | External) -> Net | External:
    """What a file says of its network; `spec` where it says nothing, or only of a part of it."""
    if found.head is not None:
        return spec
    if found.spec is not None:
        return found.spec
    if found.external is not None and isinstance(spec, External):
        sizes = {key: found.external[key] for key in ("num_classes", "in_channels")}
        return replace(spec, **sizes)
    return spec


def model_of_file(found: Weights, model: Model) -> Model:
    """The same for a network that may have a head on its features."""
    if not isinstance(model, WithHead):
        return own_spec(found, model)
    if found.head is None:
        return model
    return replace(model, head=found.head, num_classes=found.head_classes)


def load_found(
    net: nn.Module, model: str | None, found: Weights, *, new_head: bool = False
) -> LoadReport:
    """Load what `find_weights` opened; see `load_named_or_file`.

    Where only one of the two has a head on its features, or their heads differ, `new_head` loads
    what they stand on. A network for other channels than colours gets the first filters of a file
    for colours as plusx.weights.input_conv says.
    """
    _check_same(net, model, found)
    found = replace(found, tensors=adapt_input_conv(net, found.tensors))
    report = _loaded(net, found, new_head)
    remember(net, found)
    return report


def _loaded(net: nn.Module, found: Weights, new_head: bool) -> LoadReport:
    if isinstance(net, NetworkWithHead) or found.head is not None:
        return _load_dense(net, found, new_head)
    outputs = outputs_of(net)
    tensors, head = dict(found.tensors), found.tensors.get("fc.weight")
    if not new_head or head is None or head.shape[:1] == (outputs,):
        return load_weights(net, tensors)
    for name in ("fc.weight", "fc.bias"):
        tensors.pop(name, None)
    why = f"is for {head.shape[0]} classes, the network has {outputs}"
    return _load_but(net, tensors, "fc", why)


def _load_dense(net: nn.Module, found: Weights, new_head: bool) -> LoadReport:
    """Between networks of which at least one has a head on its features."""
    ours = net.head_spec if isinstance(net, NetworkWithHead) else None
    if found.head == ours and (not new_head or found.head_classes == outputs_of(net)):
        return load_weights(net, found.tensors)
    theirs = "its own linear head" if found.head is None else f"a head {found.head.kind!r}"
    if not new_head:
        raise UserError(f"the weights are for a network with {theirs}, not for this one's")
    if ours is None:
        inner = {
            name.removeprefix("backbone."): tensor
            for name, tensor in found.tensors.items()
            if name.startswith("backbone.")
        }
        return _load_but(net, inner, "fc", f"is new, the weights have {theirs}")
    known = net.state_dict()
    if found.head is None:
        named = {f"backbone.{name}": tensor for name, tensor in found.tensors.items()}
        # a tail behind the features, and the linear head, have no place here
        tensors = {name: tensor for name, tensor in named.items() if name in known}
    else:
        tensors = {
            name: tensor
            for name, tensor in found.tensors.items()
            if name.startswith("backbone.") or _fits(tensor, known.get(name))
        }
    return _load_but(net, tensors, "head", f"is new where it is another one: the file has {theirs}")


def _fits(tensor: Tensor, ours: Tensor | None) -> bool:
    return ours is not None and tensor.shape == ours.shape


def _load_but(net: nn.Module, tensors: dict[str, Tensor], head: str, why: str) -> LoadReport:
    """Load all that is there; what the head has beyond it stays as it was made.

    Linear layers of a tail are a part of the linear head: features do without them.
    """
    places = ("fc.", "tail.") if head == "fc" else (f"{head}.",)
    new = {
        name: tensor
        for name, tensor in net.state_dict().items()
        if name.startswith(places) and name not in tensors
    }
    report = load_weights(net, {**tensors, **new})
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    return replace(
        report,
        loaded=tuple(name for name in report.loaded if name not in new),
        loaded_parameters=report.loaded_parameters - sum(sizes.get(name, 0) for name in new),
        mismatched={head: why} if new or head == "fc" else {},
    )


def fetch(item: Published) -> Path:
    """The published weights as a safetensors file of ours in the cache.

    What is there already is used, if it still is what was put there. A file as published that lies
    at the place named by the error is used too. Raises OSError with the address, and where to put
    the file by hand, if it cannot be fetched or is not the one that was published.
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
    ours, seal = raw.with_suffix(".safetensors"), raw.with_suffix(".sha256")
    if ours.is_file() and seal.is_file():
        if store.read_bytes(seal, 1024).decode(errors="replace").strip() == _sha256(ours):
            return ours
        warnings.warn(f"{ours} is damaged and is made again", stacklevel=2)
    given = raw.is_file()
    if given:
        if not (digest := _sha256(raw)).startswith(item.digest):
            raise OSError(
                f"{raw} is not the file that was published as {item.url}: its sha256 begins with "
                f"{digest[:8]}, not {item.digest}; delete it"
            )
    else:
        store.write_bytes(raw, download(item, raw))
    convert(raw, item.model, "torchvision", ours)
    store.write_text(seal, _sha256(ours) + "\n")
    if not given:
        os.unlink(raw)
    return ours


def download(item: Published, place: Path) -> bytes:
    """The bytes of a published file, checked. `place` is where a user may put it by hand."""
    assert item.url.startswith(("https://", "http://")), item.url
    by_hand = f"Fetch it by hand and put it at {place}"
    most = item.size + item.size // 10 + CHUNK
    parts, length = [], 0
    try:
        request = urllib.request.Request(item.url, headers={"User-Agent": "plusx"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            announced = answer.headers.get("Content-Length", "")
            while part := answer.read(CHUNK):
                parts.append(part)
                length += len(part)
                if length > most:
                    raise OSError(
                        f"more than {most:,} bytes came, about {item.size:,} are expected"
                    )
        if announced.isdigit() and length != int(announced):
            raise OSError(f"{length:,} of {int(announced):,} bytes came")
    except (OSError, http.client.HTTPException) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            why = f"HTTP {error.code} {error.reason}"
        raise OSError(
            f"{item.name} for {item.model} could not be fetched from {item.url}: {why}. {by_hand}"
        ) from error
    data = b"".join(parts)
    if not (digest := hashlib.sha256(data).hexdigest()).startswith(item.digest):
        raise OSError(
            f"what came from {item.url} is not {item.name}: its sha256 begins with {digest[:8]}, "
            f"not {item.digest}; nothing was kept. {by_hand}"
        )
    return data


def _sha256(path: Path) -> str:
    return hashlib.sha256(store.read_bytes(path)).hexdigest()


def _check_same(net: nn.Module, model: str | None, found: Weights) -> None:
    """Refuse weights whose tensors would fit although they were trained in another network."""
    plain = None if found.external is None else found.external["name"]
    if plain is None and found.spec is None:
        return
    base = net.backbone if isinstance(net, NetworkWithHead) else net
    if isinstance(base, Network) and found.spec is not None:
        ours, theirs = base.spec, found.spec
        if found.head is not None:
            ours = backbone_of(ours, found.head)
        if isinstance(net, NetworkWithHead):
            theirs = backbone_of(theirs, net.head_spec)
        differing = _difference(_essence(ours), _essence(theirs))
        if not differing:
            return
        if model in (found.model, None):
            hint = "plusx.weights.open_network builds the file's own"
            raise UserError(f"the weights are for another network than this: {differing}; {hint}")
    elif not isinstance(base, Network) and plain == base.name:
        return
    named = found.model or plain or "a spec of its own"
    raise UserError(f"the weights are for {named}, not for {model or 'the given spec'}")


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
    """The spec without what weights may be taken across: classes, sizes, stochastic depth."""
    return replace(net, num_classes=0, in_channels=1, size=1, drop_path=0.0, drop_mode="batch")
