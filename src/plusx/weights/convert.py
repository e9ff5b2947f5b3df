"""Conversion of another library's weight files to those of plusx."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plusx import store
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.model import Model, WithHead
from plusx.grammar.spec import Block, Net
from plusx.grammar.toml import from_toml
from plusx.grammar.twins import map_blocks
from plusx.grammar.validate import validate
from plusx.nn.build import build_on_meta
from plusx.nn.network import Backbone
from plusx.store.tensors import decode
from plusx.weights import foreign
from plusx.weights.files import KINDS, describe, kind_of
from plusx.weights.load import check_finite, compare
from plusx.weights.published import IMAGENET_MEAN, IMAGENET_STD, published_as
from plusx.weights.rules import common_prefix, rename
from plusx.zoo import find_model


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TIMEOUT = 600  # seconds
SMALL = 64  # pixels per side; images up to this size are usually stretched, not cropped
EPSILON = 1e-5  # of a batch norm, and of torchvision's frozen one
# torchvision loads these files into frozen batch norms with epsilon 0
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
_AUXILIARY = "head.aux_classifier."
# the layer of a head that has the number of classes
_LAST_LAYERS = ("head.classifier.4.weight", "head.roi_heads.box_predictor.cls_score.weight")


@dataclass(frozen=True)
class SourceDefaults:
    """Preprocessing, classes and spec details that all files of a source share."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    classes: tuple[str, ...] = ()
    shortcut: Mapping[str, str] = field(default_factory=dict)  # word of plusx: word of the source
    trained_on: str = ""  # the named data set whose training images were all used


SOURCE_DEFAULTS: dict[str, SourceDefaults] = {
    "torchvision": SourceDefaults(),
    "timm": SourceDefaults(),
    # option A with half of the zero channels on each side; ImageNet's mean and deviation
    "akamaster": SourceDefaults(
        classes=CIFAR10_CLASSES, shortcut={"pad": "pad/2"}, trained_on="cifar10"
    ),
    # pixels from 0 to 255 as they are
    "keras": SourceDefaults(
        mean=(0.0,) * 3, std=(1 / 255,) * 3, classes=CIFAR10_CLASSES, trained_on="cifar10"
    ),
}


def validation_warning(source: str, data: object) -> str:
    """Return a warning if the weights of `source` were trained on the validation images of `data`.

    `data` is the kind of a data set. Returns "" if they were not.
    """
    if source not in SOURCE_DEFAULTS or SOURCE_DEFAULTS[source].trained_on != data:
        return ""
    return (
        f"the weights of {source} were trained on all training images of {data}, which include the "
        "validation images: evaluate them with --split test"
    )


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote."""

    to: Path
    model: str | None
    source: str
    tensors: int
    parameters: int
    num_classes: int
    preprocessing: dict[str, Any] | None
    classes: tuple[str, ...] | None
    key: str  # of the checkpoint, where the weights were; "": at the top
    other_keys: tuple[str, ...]  # of the checkpoint with tensors, such as averaged weights
    prefix: str  # that was removed from every name


def convert(
    file: str | Path,
    model: str | Net,
    source: str,
    to: str | Path,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    key: str = "",
) -> Conversion:
    """Convert the weight file `file` of the library `source` to a safetensors file of plusx.

    `model` is a name of the zoo, the path of a spec as TOML, or a Net. The number of classes is
    taken from the file. Details that the source builds differently are written into the spec, so
    that `open_network` builds exactly the network that was trained. `preprocessing` and `classes`
    default to those of the source. `key` selects the weights in a checkpoint, such as
    "state_dict_ema"; "" takes the usual one. A pickle is read in a separate process, with
    `weights_only`.
    Raises UserError if the file does not fit the model and source; nothing is written then.
    """
    if source not in SOURCE_DEFAULTS:
        raise UserError(f"unknown source {source!r}; sources are {', '.join(SOURCE_DEFAULTS)}")
    file, to = Path(file), Path(to)
    if to.suffix != ".safetensors":
        raise UserError(f"{to}: the name of the new file must end with .safetensors")
    kind = kind_of(file)
    if kind not in KINDS:
        raise UserError(f"{file} is {kind}; `plusx convert` reads {', '.join(KINDS.values())}")
    if to.exists() and to.samefile(file):
        raise UserError(f"{to} is the input file; choose another name for the new file")
    defaults = SOURCE_DEFAULTS[source]
    name, source_model = _model(model, defaults)
    state = build_on_meta(source_model).state_dict()
    if kind == "safetensors":
        tensors, _ = store.load_tensors(file)
        origin: dict[str, str] = {}
        if key:
            raise UserError(f"{file} is a safetensors file, which has no key {key!r}")
    else:
        numbers = sum(tensor.numel() for tensor in state.values())
        tensors, origin = read_foreign(file, kind, numbers, key)
    prefix = common_prefix(tensors)
    tensors = rename(tensors, source, state)
    net = build_on_meta(_as_in_file(source_model, tensors))
    report = compare(net, tensors)
    if not report.complete:
        raise UserError(f"{file} does not fit {name or 'the spec'} of {source}: {report}")
    check_finite(tensors)
    release = published_as(name, file.name) if name and source == "torchvision" else None
    if release is not None and release.name == "COCO_V1" and name in WITHOUT_EPSILON:
        tensors = with_epsilon(tensors)
    if preprocessing is None:
        preprocessing = release.preprocessing if release else usual_preprocessing(net, defaults)
    if classes is None:
        classes = release.classes if release else usual_classes(net.num_classes, defaults)
    metadata = describe(net, name, preprocessing, classes, source)
    if net.head_spec is not None:
        metadata["task"] = json.dumps({"kind": net.head_spec.task})
    written = {
        name: _with_dtype(tensors.get(name), tensor) for name, tensor in net.state_dict().items()
    }
    store.save_tensors(to, written, metadata)
    return Conversion(
        to=to,
        model=name,
        source=source,
        tensors=len(written),
        parameters=report.parameters,
        num_classes=net.num_classes,
        preprocessing=None if preprocessing is None else dict(preprocessing),
        classes=None if classes is None else tuple(classes),
        key=origin.get("key", ""),
        other_keys=tuple(json.loads(origin.get("others", "[]"))),
        prefix=prefix,
    )


def read_foreign(
    file: Path, kind: str, expected: int, key: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a torch pickle or a NumPy archive in a separate process.

    `kind` is a key of `weights.files.KINDS`. `expected` is the number of parameters and buffers of
    the network; it limits the size of the file and the memory of the process. Returns the tensors,
    and the metadata that `weights.foreign` describes. Raises UserError if the file cannot be read.
    """
    # eight bytes per number, and room for an optimizer's state in addition to the weights
    room = 8 * 8 * expected + (64 << 20)
    declared = _declared(file)
    if declared > room:
        raise UserError(
            f"{file} has {declared:,} bytes when unpacked, far more than the network needs for its "
            f"{expected:,} numbers; it was not opened"
        )
    command = [sys.executable, "-I", foreign.__file__, str(file.resolve()), kind, str(2 * room)]
    command += [key] if key else []
    try:
        process = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{file} was not read within {TIMEOUT} s") from None
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"its reader ended with status {process.returncode}"
        raise UserError(f"{file} cannot be converted: {why}")
    return decode(process.stdout, str(file))


def _declared(file: Path) -> int:
    """Return the unpacked size of a file in bytes, as its zip directory states it."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def usual_preprocessing(net: Backbone, defaults: SourceDefaults) -> dict[str, Any] | None:
    """Return the preprocessing of a source's networks; None if the input is not an RGB image."""
    spec = net.base.spec
    if spec.ndim != 2 or net.in_channels != len(defaults.mean):
        return None
    size = list(each_dimension(spec.size, 2))
    return {
        "kind": "image",
        "size": size,
        "resize": usual_resize(size),
        "channels": net.in_channels,
        "mean": list(defaults.mean),
        "std": list(defaults.std),
    }


def usual_resize(size: Sequence[int]) -> str:
    """Return the usual `resize` for this input size, for files that do not state it."""
    return "stretch" if max(size) <= SMALL else "center_crop"


def usual_classes(outputs: int, defaults: SourceDefaults) -> tuple[str, ...] | None:
    """Return the class names of a source, or ImageNet's; None if neither has `outputs` names."""
    if len(defaults.classes) == outputs:
        return defaults.classes
    from torchvision.models import ResNet18_Weights  # slow to import

    imagenet = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(imagenet) if len(imagenet) == outputs else None


def _model(model: str | Net, defaults: SourceDefaults) -> tuple[str | None, Model]:
    """Return the name of a zoo network (or None), and the model as the source builds it."""
    if isinstance(model, str) and model.endswith(".toml"):
        try:
            spec = from_toml(Path(model).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the spec {model}: {error}") from None
        validate(spec)
        return None, with_shortcut(spec, defaults.shortcut)
    name = model if isinstance(model, str) else None
    source_model = find_model(model) if isinstance(model, str) else model
    if isinstance(source_model, Net):
        source_model = with_shortcut(source_model, defaults.shortcut)
    return name, source_model


def with_shortcut(net: Net, words: Mapping[str, str]) -> Net:
    """Return the spec with the words of its shortcuts replaced according to `words`."""

    def renamed(block: Block) -> Block:
        shortcut = " ".join(words.get(word, word) for word in block.shortcut.split())
        return replace(block, shortcut=shortcut)

    return map_blocks(net, renamed)


def _as_in_file(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """Return the model with the number of classes of the file's tensors, and for a network with a
    head on its features also with their auxiliary head and frozen batch norms, if they have them.
    """
    if not isinstance(model, WithHead):
        weight = tensors.get("fc.weight")
        rows = weight.shape[0] if weight is not None and weight.ndim == 2 else 0
        return replace(model, num_classes=rows or model.num_classes)
    head: Any = model.head
    if hasattr(head, "auxiliary"):
        head = replace(head, auxiliary=any(name.startswith(_AUXILIARY) for name in tensors))
    if head.two_stage:
        trainable = any(name.endswith(".num_batches_tracked") for name in tensors)
        head = replace(head, frozen_norms=not trainable)
    num_classes = model.num_classes
    for name in _LAST_LAYERS:
        if name in tensors and tensors[name].ndim >= 2:
            num_classes = max(tensors[name].shape[0] - head.two_stage, 1)  # without the background
    return replace(model, head=head, num_classes=num_classes)


def with_epsilon(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rescale batch norms trained with epsilon 0 for an epsilon of EPSILON; same outputs."""
    changed = dict(tensors)
    for key, variance in tensors.items():
        weight = f"{key.removesuffix('running_var')}weight"
        if key.endswith(".running_var") and weight in tensors:
            factor = torch.sqrt((variance.double() + EPSILON) / variance.double())
            changed[weight] = (tensors[weight].double() * factor).to(tensors[weight].dtype)
    return changed


def _with_dtype(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Return a tensor in the dtype of `like`; zero for a missing `num_batches_tracked`."""
    return torch.zeros(like.shape, dtype=like.dtype) if tensor is None else tensor.to(like.dtype)
