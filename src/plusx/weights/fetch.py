"""Weights by the name their publisher gave them: fetched once, checked, converted, kept."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path

from torch import nn

from plusx import store
from plusx.grammar.spec import Net
from plusx.nn.network import Network
from plusx.weights.convert import convert
from plusx.weights.files import Weights, read_weights
from plusx.weights.load import LoadReport, load_weights
from plusx.weights.published import Published, published, published_names
from plusx.zoo import find


TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20
NAME = re.compile(r"(?:\w+_Weights\.)?[A-Z][A-Z0-9_]*")


def load_named_or_file(
    net: nn.Module, model: str | None, weights: str | Path, *, new_head: bool | None = None
) -> LoadReport:
    """Load torchvision's weights by their name ("IMAGENET1K_V2"), or a safetensors file.

    Strict, but for the head: where `net` was given another number of classes than the weights have,
    its own head is kept (`new_head`; unless said, this is so where the number is not the one that
    the zoo gives the network). Raises ValueError where the weights are for another network, and
    OSError where they cannot be fetched.
    """
    return load_found(net, model, find_weights(model, weights), new_head=new_head)


def find_weights(model: str | None, weights: str | Path) -> Weights:
    """Open a file, or the published weights of that name for the network `model` of the zoo."""
    if isinstance(weights, str) and NAME.fullmatch(weights) and not Path(weights).exists():
        if model is None:
            raise ValueError(f"{weights!r} names no file, and a spec has no published weights")
        return read_weights(fetch(published(model, weights)))
    names = published_names(model) if model else ()
    if names and not Path(weights).exists():
        raise ValueError(
            f"there is no file {weights}; {model} has {', '.join(names)} to be fetched"
        )
    return read_weights(weights)


def load_found(
    net: nn.Module, model: str | None, found: Weights, *, new_head: bool | None = None
) -> LoadReport:
    """Load what `find_weights` opened; see `load_named_or_file`."""
    _check_same(net, found)
    outputs = net.fc.out_features if isinstance(net.fc, nn.Linear) else 0
    tensors, head = dict(found.tensors), found.tensors.get("fc.weight")
    if head is None or head.shape[:1] == (outputs,):
        return load_weights(net, tensors)
    if new_head is None:
        new_head = outputs == 0 or (model is not None and outputs != find(model).num_classes)
    if not new_head:
        return load_weights(net, tensors)
    why = f"is for {head.shape[0]} classes, the network has {outputs}"
    for name in ("fc.weight", "fc.bias"):
        tensors.pop(name, None)
        if outputs:
            tensors[name] = net.state_dict()[name]
    report = load_weights(net, tensors)
    kept = sum(parameter.numel() for parameter in net.fc.parameters())
    return replace(
        report,
        loaded=tuple(name for name in report.loaded if not name.startswith("fc.")),
        loaded_parameters=report.loaded_parameters - kept,
        unfit={"fc": why},
    )


def fetch(item: Published) -> Path:
    """The published weights as a safetensors file of ours in the cache.

    What is there already is used, if it still is what was put there. A file as published that lies
    at the place named by the error is used too. Raises OSError with the address, and where to put
    the file by hand, if it cannot be fetched or is not the one that was published.
    """
    folder = cache_folder() / "weights"
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
        store.make_folder(folder)
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


def cache_folder() -> Path:
    """PLUSX_CACHE, else ~/.cache/plusx."""
    said = os.environ.get("PLUSX_CACHE")
    return Path(said).absolute() if said else Path.home() / ".cache" / "plusx"


def _sha256(path: Path) -> str:
    return hashlib.sha256(store.read_bytes(path)).hexdigest()


def _check_same(net: nn.Module, found: Weights) -> None:
    """Refuse weights whose tensors would fit although they were trained in another network."""
    if found.plain is not None and getattr(net, "plain", None) != found.plain["name"]:
        raise ValueError(f"the weights are for {found.plain['name']}")
    if found.spec is None or not isinstance(net, Network):
        return
    ours, theirs = _essence(net.spec), _essence(found.spec)
    if ours == theirs:
        return
    said = f"the weights were made for another network than this one ({found.model or 'a spec'}): "
    for name in Net.__dataclass_fields__:
        if name != "stages" and getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{said}{name} {getattr(theirs, name)!r}, here {getattr(ours, name)!r}"
            )
    for i, (stage, other) in enumerate(zip(ours.stages, theirs.stages), 1):
        for name in type(stage).__dataclass_fields__:
            if getattr(stage, name) != getattr(other, name):
                raise ValueError(
                    f"{said}{name} of stage {i} {getattr(other, name)!r}, here "
                    f"{getattr(stage, name)!r}; plusx.open_network builds the file's own"
                )
    raise ValueError(f"{said}{len(theirs.stages)} stages, here {len(ours.stages)}")


def _essence(net: Net) -> Net:
    """The spec without what weights may be taken across: classes, sizes, stochastic depth."""
    return replace(net, num_classes=0, in_channels=1, size=1, drop_path=0.0, drop_mode="batch")
