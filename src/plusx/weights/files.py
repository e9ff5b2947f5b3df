"""Weight files of plusx: safetensors whose metadata describes the network.

Keys of the metadata:

net            the spec as TOML; or `external`: name, num_classes and in_channels as JSON
model          the name in the zoo, if it has one
head           the head and its num_classes as JSON, for a network with a head on its features
preprocessing  how an input is prepared, as JSON; see `Modality.to_dict`
classes        the class names in the order of the outputs, as JSON
task           the task's table of the recipe, as JSON
multilabel     "true" if an input can have several classes
source         where the weights come from
data           the name of the data that they were trained on

The metadata names no code: a network is built from its spec, or is one of EXTERNAL.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx import store
from plusx.errors import UserError, printable
from plusx.grammar.arithmetic import measure
from plusx.grammar.heads import Head, head_from_dict, head_to_dict
from plusx.grammar.model import External, Model, WithHead
from plusx.grammar.spec import Net
from plusx.grammar.toml import from_toml, to_toml
from plusx.grammar.validate import validate
from plusx.nn.build import build, build_on_meta
from plusx.nn.network import Backbone, Network
from plusx.weights.load import check_finite, load_weights
from plusx.zoo import ZOO


FORMAT = "plusx weights 1"
MAX_BLOCKS = 10_000

# the kinds of file that can be opened or converted
KINDS = {
    "safetensors": "a safetensors file",
    "torch": "a torch pickle",
    "torch, legacy": "a torch pickle of the old kind",
    "npz": "a NumPy archive",
}
READABLE = " or ".join(kind for name, kind in KINDS.items() if name != "safetensors")
# first bytes of other kinds of files
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a single NumPy array",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x1f\x8b": "a gzip file",
    b"\x80": "a pickle",
    b"\x08": "an ONNX file",
}


@dataclass(frozen=True)
class Weights:
    """The tensors and the metadata of a weight file; None for what the file does not state."""

    tensors: Mapping[str, Tensor]
    model: str | None = None
    spec: Net | External | None = None
    preprocessing: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    source: str = ""
    multilabel: bool = False  # whether an input can have several of the classes
    head: Head | None = None  # None: a linear classifier
    head_classes: int = 0  # of `head`
    task: dict[str, Any] | None = None
    data: str = ""  # the name of what it was trained on


def read_weights(path: str | Path) -> Weights:
    """Read a safetensors file, of plusx or of another library.

    Raises UserError if it is another kind of file (a pickle is never opened) or corrupt.
    """
    path = Path(path)
    if (kind := kind_of(path)) != "safetensors":
        raise UserError(
            f"{path} is {KINDS.get(kind, kind)}; plusx opens only safetensors. `plusx convert FILE "
            f"--as MODEL --source SOURCE --out FILE.safetensors` converts {READABLE}"
        )
    tensors, metadata = store.load_tensors(path)
    try:
        return from_metadata(tensors, metadata)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"the metadata of {path} is not plusx's: {error}") from None


def save_network(
    net: Backbone,
    path: str | Path,
    *,
    model: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    source: str = "",
    multilabel: bool = False,
    task: Mapping[str, Any] | None = None,
    data: str = "",
) -> None:
    """Write a network's weights with the metadata to build and use it again.

    preprocessing: `Modality.to_dict()` of the data
    classes: names in the order of the outputs
    task: the task's table of the recipe
    data: the name of the data that it was trained on

    Raises UserError if a weight is not finite, or the number of names is not that of the outputs.
    """
    tensors = net.state_dict()
    check_finite(tensors)
    metadata = describe(net, model, preprocessing, classes, source)
    if multilabel:
        metadata["multilabel"] = "true"
    if task is not None:
        metadata["task"] = json.dumps(dict(task), allow_nan=False)
    if data:
        metadata["data"] = data
    store.save_tensors(path, tensors, metadata)


def describe(
    net: Backbone,
    model: str | None,
    preprocessing: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
    source: str,
) -> dict[str, str]:
    """Return a weight file's metadata for a network; see the docstring of this module."""
    outputs = net.num_classes
    metadata = {"format": FORMAT}
    if net.head_spec is not None:
        head = {**head_to_dict(net.head_spec), "num_classes": outputs}
        metadata["head"] = json.dumps(head)
        net = net.base
    if isinstance(net, Network):
        metadata["net"] = to_toml(net.spec)
    else:
        keys = ("name", "num_classes", "in_channels")
        metadata["external"] = json.dumps({key: getattr(net, key) for key in keys})
    if model:
        metadata["model"] = model
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(dict(preprocessing), allow_nan=False)
    if classes is not None:
        if len(classes) != outputs:
            raise UserError(f"{len(classes)} names of classes for {outputs} outputs")
        metadata["classes"] = json.dumps(list(classes))
    if source:
        metadata["source"] = source
    return metadata


def open_network(path: str | Path) -> tuple[Backbone, Weights]:
    """Build the network that a weight file describes, load its weights, and set it to eval mode."""
    weights = read_weights(path)
    if weights.spec is None:
        raise UserError(
            f"{path} does not state its network; name the network, or write the file with "
            "`plusx convert`"
        )
    # checked before anything is allocated: a small file may describe a huge network
    numbers = sum(tensor.numel() for tensor in weights.tensors.values())
    needed = measure(weights.spec).parameters if isinstance(weights.spec, Net) else 0
    if needed <= numbers:
        state = build_on_meta(model_of(weights)).state_dict().items()
        needed = sum(t.numel() for n, t in state if not n.endswith("num_batches_tracked"))
    if needed > numbers:
        part = "head" if weights.head is not None else "network"
        raise UserError(f"{path} describes a larger {part} than it has weights for")
    net = build(model_of(weights), initialised=False)
    load_weights(net, weights.tensors)
    set_preprocessing(net, weights)
    return net.eval(), weights


def model_of(weights: Weights) -> Model:
    """Return the model that the metadata of a weight file describes."""
    assert weights.spec is not None
    if weights.head is None:
        return weights.spec
    return WithHead(backbone=weights.spec, head=weights.head, num_classes=weights.head_classes)


def set_preprocessing(net: Backbone, weights: Weights) -> None:
    """Set the preprocessing and the class names of a network to those of a weight file."""
    if weights.preprocessing is not None:
        net.preprocessing = dict(weights.preprocessing)
    if weights.classes is not None and len(weights.classes) == net.num_classes:
        net.classes = weights.classes


def kind_of(path: str | Path) -> str:
    """Return the kind of a file by its content: a key of KINDS, or a description."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of weights")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(LEGACY_TORCH):
        return "torch, legacy"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(path)
    if head[8:9] == b"{":
        return "safetensors"
    if head[257:262] == b"ustar":
        return "a tar archive"
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if not head:
        return "empty"
    return "not a weight file that plusx knows"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a corrupt zip archive"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript archive"
        return "torch"
    return "a zip archive"


def from_metadata(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Weights:
    """Return tensors with their parsed metadata, which is not trusted.

    Raises UserError, TypeError, KeyError or RecursionError for invalid metadata.
    """
    if metadata.get("format") != FORMAT:
        return Weights(tensors)
    spec: Net | External | None = None
    if "net" in metadata:
        spec = from_toml(metadata["net"])
        if sum(stage.depth for stage in spec.stages) > MAX_BLOCKS:
            raise UserError(f"a network of more than {MAX_BLOCKS:,} blocks")
        validate(spec)
    elif "external" in metadata:
        spec = _checked_external(json.loads(metadata["external"]))
    preprocessing = json.loads(metadata.get("preprocessing", "null"))
    if not isinstance(preprocessing, dict | None):
        raise UserError("preprocessing is a table")
    classes = json.loads(metadata.get("classes", "null"))
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError("classes are a list of names")
        classes = tuple(map(printable, classes))
    head, head_classes = _checked_head(json.loads(metadata.get("head", "null")))
    outputs = head_classes if head is not None else spec.num_classes if spec is not None else None
    if classes is not None and outputs is not None and len(classes) != outputs:
        raise UserError(f"{len(classes)} names of classes for {outputs} outputs")
    task = json.loads(metadata.get("task", "null"))
    if not isinstance(task, dict | None):
        raise UserError("task is a table")
    return Weights(
        tensors,
        model=metadata.get("model"),
        spec=spec,
        preprocessing=preprocessing,
        classes=classes,
        source=metadata.get("source", ""),
        multilabel=metadata.get("multilabel") == "true",
        head=head,
        head_classes=head_classes,
        task=task,
        data=printable(metadata.get("data", "")),
    )


def _checked_head(table: Any) -> tuple[Head | None, int]:
    if table is None:
        return None, 0
    if not isinstance(table, dict):
        raise UserError("head is a table")
    num_classes = table.pop("num_classes", None)
    if type(num_classes) is not int or not 1 <= num_classes <= 1_000_000:
        raise UserError(f"num_classes of the head is {num_classes!r}")
    return head_from_dict(table), num_classes


def _checked_external(table: Any) -> External:
    if not isinstance(table, dict) or set(table) != {"name", "num_classes", "in_channels"}:
        raise UserError("an external network is a name, num_classes and in_channels")
    entry = ZOO.get(str(table["name"]))
    if entry is None or not isinstance(entry.net, External):
        raise UserError(f"there is no external network {table['name']!r}")
    for key, largest in (("num_classes", 1_000_000), ("in_channels", 10_000)):
        if type(table[key]) is not int or not 0 <= table[key] <= largest:
            raise UserError(f"{key} is {table[key]!r}")
    return replace(entry.net, num_classes=table["num_classes"], in_channels=table["in_channels"])
