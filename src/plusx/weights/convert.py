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
from torch import Tensor, nn

from plusx import store
from plusx.errors import UserError
from plusx.grammar.arithmetic import each_dimension
from plusx.grammar.model import External
from plusx.grammar.spec import Block, Net
from plusx.grammar.toml import from_toml
from plusx.grammar.validate import validate
from plusx.nn.build import build
from plusx.nn.network import Network
from plusx.nn.with_head import NetworkWithHead
from plusx.store.tensors import decode
from plusx.weights import foreign
from plusx.weights.files import KINDS, describe, kind_of
from plusx.weights.load import check_finite, compare, outputs_of
from plusx.weights.published import IMAGENET_MEAN, IMAGENET_STD, published_as
from plusx.weights.rules import rename
from plusx.weights.with_head import (
    WITHOUT_EPSILON,
    dense_named,
    matched,
    task_of,
    with_epsilon,
)
from plusx.zoo import find
from plusx.zoo.with_head import HEADED


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


@dataclass(frozen=True)
class SourceDefaults:
    """What the files of a source have in common beside their names."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    classes: tuple[str, ...] = ()
    shortcut: Mapping[str, str] = field(default_factory=dict)  # a word of ours: theirs


SOURCE_DEFAULTS: dict[str, SourceDefaults] = {
    "torchvision": SourceDefaults(),
    "timm": SourceDefaults(),
    # option A with half of the zero channels on each side; ImageNet's mean and deviation
    "akamaster": SourceDefaults(classes=CIFAR10_CLASSES, shortcut={"pad": "pad/2"}),
    # pixels from 0 to 255 as they are
    "keras": SourceDefaults(mean=(0.0,) * 3, std=(1 / 255,) * 3, classes=CIFAR10_CLASSES),
}


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


def convert(
    file: str | Path,
    model: str | Net,
    source: str,
    to: str | Path,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Conversion:
    """Read `file`, which `source` wrote for the network `model`, and write it to `to`.

    `model` is a name of the zoo, the path of a spec as TOML, or a Net. The number of classes is the
    file's. What a source does differently goes into the written spec, so that `open_network` builds
    exactly the network that was trained. Preprocessing and names of classes are the source's usual
    ones unless given. A pickle is read in a process of its own and never runs anything.
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
    named = model if isinstance(model, str) and model in HEADED else None
    name, spec = (named, None) if named else _meant(model, SOURCE_DEFAULTS[source])
    with torch.device("meta"):
        net = dense_named(named) if named else _built(name, spec)
    ours = net.state_dict()
    if kind == "safetensors":
        read, _ = store.load_tensors(file)
    else:
        read = read_foreign(file, kind, expected=sum(tensor.numel() for tensor in ours.values()))
    given = rename(read, source, ours)
    if named:
        with torch.device("meta"):
            net = matched(named, given)
    else:
        _match_head(net, given)
    report = compare(net, given)
    if not report.complete:
        raise UserError(f"{file} is not {name or 'the spec'} as {source} writes it: {report}")
    check_finite(given)
    known = published_as(name, file.name) if name and source == "torchvision" else None
    if known is not None and known.name == "COCO_V1" and name in WITHOUT_EPSILON:
        given = with_epsilon(given)
    if preprocessing is None:
        preprocessing = (
            known.preprocessing if known else usual_preprocessing(net, SOURCE_DEFAULTS[source])
        )
    if classes is None:
        classes = (
            known.classes if known else usual_classes(outputs_of(net), SOURCE_DEFAULTS[source])
        )
    written = {key: _finished(given.get(key), tensor) for key, tensor in net.state_dict().items()}
    metadata = describe(net, name, preprocessing, classes, source)
    if isinstance(net, NetworkWithHead):
        metadata["task"] = json.dumps(task_of(net.head_spec))
    store.save_tensors(to, written, metadata)
    return Conversion(
        to=to,
        model=name,
        source=source,
        tensors=len(written),
        parameters=report.parameters,
        num_classes=outputs_of(net),
        preprocessing=None if preprocessing is None else dict(preprocessing),
        classes=None if classes is None else tuple(classes),
    )


def read_foreign(file: Path, kind: str, expected: int) -> dict[str, Tensor]:
    """The tensors of a torch pickle or NumPy archive, read in a process of its own.

    `expected` is how many numbers the network has: a file that declares, or a reader that takes,
    far more than these could need is refused. Raises UserError with the reason in one line.
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
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{file} was not read within {SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"its reader ended with status {done.returncode}"
        raise UserError(f"{file} cannot be converted: {why}")
    return decode(done.stdout, str(file))[0]


def _declared(file: Path) -> int:
    """Bytes that a file says it holds when unpacked."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def usual_preprocessing(net: nn.Module, habit: SourceDefaults) -> dict[str, Any] | None:
    """What the files of a source expect, where it is images of three channels."""
    if isinstance(net, NetworkWithHead):
        net = net.backbone
    spec = net.spec if isinstance(net, Network) else find(str(net.name))
    channels = spec.in_channels if isinstance(spec, Net) else net.in_channels
    if (isinstance(spec, Net) and spec.ndim != 2) or channels != len(habit.mean):
        return None
    return {
        "size": list(each_dimension(spec.size, 2)),
        "channels": channels,
        "mean": list(habit.mean),
        "std": list(habit.std),
    }


def usual_classes(outputs: int, habit: SourceDefaults) -> tuple[str, ...] | None:
    """The names of a source's classes, or ImageNet's where there are a thousand."""
    if len(habit.classes) == outputs:
        return habit.classes
    from torchvision.models import ResNet18_Weights  # slow, and seldom needed

    imagenet = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(imagenet) if len(imagenet) == outputs else None


def _meant(model: str | Net, habit: SourceDefaults) -> tuple[str | None, Net | None]:
    """The name, and the spec as the source builds it; no spec for an external module."""
    name: str | None = None
    spec: Net | External | str = model
    if isinstance(model, str) and model.endswith(".toml"):
        try:
            spec = from_toml(Path(model).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"the spec {model}: {error}") from None
        validate(spec)
    elif isinstance(model, str):
        name, spec = model, find(model)
    if not isinstance(spec, Net):
        return name, None
    return name, with_shortcut(spec, habit.shortcut)


def with_shortcut(net: Net, words: Mapping[str, str]) -> Net:
    """The spec with other words in its shortcuts."""

    def block(spec: Block) -> Block:
        said = " ".join(words.get(word, word) for word in spec.shortcut.split())
        return replace(spec, shortcut=said)

    stages = tuple(
        replace(
            stage,
            block=tuple(map(block, stage.block))
            if isinstance(stage.block, tuple)
            else block(stage.block),
            first=None if stage.first is None else block(stage.first),
        )
        for stage in net.stages
    )
    return replace(net, stages=stages)


def _built(name: str | None, spec: Net | None) -> nn.Module:
    if spec is not None:
        return Network(spec)
    assert name is not None
    return build(find(name), initialised=False)


def _match_head(net: Any, given: Mapping[str, Tensor]) -> None:
    """As many classes as the file has."""
    head = given.get("fc.weight")
    if head is not None and head.ndim == 2 and 0 < head.shape[0] != outputs_of(net):
        net.reset_head(head.shape[0])


def _finished(given: Tensor | None, ours: Tensor) -> Tensor:
    """A tensor of the type our network has; a count of batches that no one kept is 0."""
    return torch.zeros(ours.shape, dtype=ours.dtype) if given is None else given.to(ours.dtype)
