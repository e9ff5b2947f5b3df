"""Turn another library's weight file into one of ours."""

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
from plusx.nn.build import build
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
SECONDS = 600
SMALL = 64  # pixels a side up to which images are usually stretched to the size, not cropped
EPSILON = 1e-5  # of a batch norm, and of torchvision's frozen one
# torchvision reads these files with frozen norms that add nothing to the variance
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
_AUXILIARY = "head.aux_classifier."
# the layer of a head that has the number of classes
_LAST_LAYERS = ("head.classifier.4.weight", "head.roi_heads.box_predictor.cls_score.weight")


@dataclass(frozen=True)
class SourceDefaults:
    """What the files of a source have in common beside their names."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    classes: tuple[str, ...] = ()
    shortcut: Mapping[str, str] = field(default_factory=dict)  # a word of ours: theirs
    trained_on: str = ""  # the named set whose training images all were learned from


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


def validation_notice(source: str, data: object) -> str:
    """What to say of metrics on validation images of a named set, by weights of that source that
    were trained on them; "" where they were not.
    """
    if source not in SOURCE_DEFAULTS or SOURCE_DEFAULTS[source].trained_on != data:
        return ""
    return (
        f"the weights of {source} were trained on all training images of {data}, and the "
        "validation images are among them: only --split test says how good they are"
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
    key: str  # of the checkpoint that the weights come from; "": its top
    other_keys: tuple[str, ...]  # of the checkpoint that hold tensors too, such as averaged weights
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
    """Read `file`, which `source` wrote for the network `model`, and write it to `to`.

    `model` is a name of the zoo, the path of a spec as TOML, or a Net. The number of classes is the
    file's. What a source does differently goes into the written spec, so that `open_network` builds
    exactly the network that was trained. Preprocessing and names of classes are the source's usual
    ones unless given. `key` is that of the weights in a checkpoint, such as "state_dict_ema"; "" is
    the usual one. A pickle is read in a process of its own and never runs anything.
    Raises UserError where the file is not what it is said to be; nothing is written then.
    """
    if source not in SOURCE_DEFAULTS:
        raise UserError(f"unknown source {source!r}; sources are {', '.join(SOURCE_DEFAULTS)}")
    file, to = Path(file), Path(to)
    if to.suffix != ".safetensors":
        raise UserError(f"{to}: what plusx writes is a .safetensors file")
    kind = kind_of(file)
    if kind not in KINDS:
        raise UserError(f"{file} is {kind}; `plusx convert` reads {', '.join(KINDS.values())}")
    if to.exists() and to.samefile(file):
        raise UserError(f"{to} is the file to be read")
    defaults = SOURCE_DEFAULTS[source]
    name, described = _model(model, defaults)
    state = _sketch(described).state_dict()
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
    net = _sketch(_as_in_file(described, tensors))
    report = compare(net, tensors)
    if not report.complete:
        raise UserError(f"{file} is not {name or 'the spec'} as {source} writes it: {report}")
    check_finite(tensors)
    known = published_as(name, file.name) if name and source == "torchvision" else None
    if known is not None and known.name == "COCO_V1" and name in WITHOUT_EPSILON:
        tensors = with_epsilon(tensors)
    if preprocessing is None:
        preprocessing = known.preprocessing if known else usual_preprocessing(net, defaults)
    if classes is None:
        classes = known.classes if known else usual_classes(net.num_classes, defaults)
    metadata = describe(net, name, preprocessing, classes, source)
    if net.head_spec is not None:
        metadata["task"] = json.dumps({"kind": net.head_spec.task})
    written = {key: _typed(tensors.get(key), ours) for key, ours in net.state_dict().items()}
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
    """The tensors of a torch pickle or NumPy archive, read in a process of its own, and the
    metadata that `weights.foreign` describes.

    `expected` is the number of parameters and buffers of the network: a file that declares, or a
    reader that takes, far more than these need is refused. Raises UserError with the reason.
    """
    # eight bytes a number, and room for what an optimizer keeps beside the weights
    room = 8 * 8 * expected + (64 << 20)
    declared = _declared(file)
    if declared > room:
        raise UserError(
            f"{file} holds {declared:,} bytes when unpacked, far more than the {expected:,} "
            "numbers of the network need; it was not opened"
        )
    command = [sys.executable, "-I", foreign.__file__, str(file.resolve()), kind, str(2 * room)]
    command += [key] if key else []
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{file} was not read within {SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"its reader ended with status {done.returncode}"
        raise UserError(f"{file} cannot be converted: {why}")
    return decode(done.stdout, str(file))


def _declared(file: Path) -> int:
    """Bytes that a file says it holds when unpacked."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def usual_preprocessing(net: Backbone, defaults: SourceDefaults) -> dict[str, Any] | None:
    """The preprocessing that the files of a source expect, for images of three channels."""
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
    """The resize of networks of this input size, where a file does not state it."""
    return "stretch" if max(size) <= SMALL else "center_crop"


def usual_classes(outputs: int, defaults: SourceDefaults) -> tuple[str, ...] | None:
    """The names of a source's classes, or ImageNet's where there are a thousand."""
    if len(defaults.classes) == outputs:
        return defaults.classes
    from torchvision.models import ResNet18_Weights  # slow, and seldom needed

    imagenet = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(imagenet) if len(imagenet) == outputs else None


def _model(model: str | Net, defaults: SourceDefaults) -> tuple[str | None, Model]:
    """The name of a network of the zoo, and the model as the source builds it."""
    if isinstance(model, str) and model.endswith(".toml"):
        try:
            spec = from_toml(Path(model).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the spec {model}: {error}") from None
        validate(spec)
        return None, with_shortcut(spec, defaults.shortcut)
    name, described = (model, find_model(model)) if isinstance(model, str) else (None, model)
    if isinstance(described, Net):
        described = with_shortcut(described, defaults.shortcut)
    return name, described


def with_shortcut(net: Net, words: Mapping[str, str]) -> Net:
    """The spec with other words in its shortcuts."""

    def renamed(block: Block) -> Block:
        shortcut = " ".join(words.get(word, word) for word in block.shortcut.split())
        return replace(block, shortcut=shortcut)

    return map_blocks(net, renamed)


def _sketch(model: Model) -> Backbone:
    """The network of a model, without memory for its tensors."""
    with torch.device("meta"):
        return build(model, initialised=False)


def _as_in_file(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    """The model with the number of classes that a file has, and of a head whether it is auxiliary
    and whether norms are constants.
    """
    if not isinstance(model, WithHead):
        weight = tensors.get("fc.weight")
        rows = weight.shape[0] if weight is not None and weight.ndim == 2 else 0
        return replace(model, num_classes=rows or model.num_classes)
    head: Any = model.head
    if hasattr(head, "auxiliary"):
        head = replace(head, auxiliary=any(name.startswith(_AUXILIARY) for name in tensors))
    if head.two_stage:
        counted = any(name.endswith(".num_batches_tracked") for name in tensors)
        head = replace(head, frozen_norms=not counted)
    num_classes = model.num_classes
    for name in _LAST_LAYERS:
        if name in tensors and tensors[name].ndim >= 2:
            num_classes = max(tensors[name].shape[0] - head.two_stage, 1)  # less the background
    return replace(model, head=head, num_classes=num_classes)


def with_epsilon(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network whose frozen norms add nothing to the variance, for norms that add
    EPSILON: the outputs are the same."""
    changed = dict(tensors)
    for key, variance in tensors.items():
        weight = f"{key.removesuffix('running_var')}weight"
        if key.endswith(".running_var") and weight in tensors:
            factor = torch.sqrt((variance.double() + EPSILON) / variance.double())
            changed[weight] = (tensors[weight].double() * factor).to(tensors[weight].dtype)
    return changed


def _typed(tensor: Tensor | None, ours: Tensor) -> Tensor:
    """A tensor in the type of our network; a count of batches that is missing is 0."""
    return torch.zeros(ours.shape, dtype=ours.dtype) if tensor is None else tensor.to(ours.dtype)
