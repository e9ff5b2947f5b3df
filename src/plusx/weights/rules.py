"""Rules that rename the tensors of other libraries' weight files.

A rule is a regular expression for a name and the plusx name that replaces it. In the latter, `{1}`
is the first group of the expression and `{1-1}` the number in that group minus one. The first rule
that matches the whole name applies; a name that no rule matches is unchanged.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from plusx.errors import UserError


@dataclass(frozen=True)
class Rule:
    """Rename tensors that match `pattern` to `name`; an empty name drops them.

    `change` is the change of their axes: "conv1" turns the matrix of a linear layer into a 1 x 1
    convolution, "keras" a kernel (height, width, in, out) or (in, out) into torch's order.
    """

    pattern: str
    name: str
    change: Literal["", "conv1", "keras"] = ""


@dataclass(frozen=True)
class Family:
    """Rules for the files in which some name matches `mark`.

    `counted` matches layers by their order: its first group is a number, and the layers, sorted by
    it, are those modules of the network whose names match `among`.
    """

    mark: str
    rules: tuple[Rule, ...] = ()
    counted: str = ""
    among: str = ""


# the backbone has the names of plusx
SEGMENTATION = Family(
    r"backbone\.conv1\.weight",
    (Rule(r"((?:aux_)?classifier)\.(.+)", "head.{1}.{2}"),),
)
# the published files have the old names of torchvision, without the inner layer
DETECTION = Family(
    r"backbone\.body\.conv1\.weight",
    (
        Rule(r"backbone\.body\.(.+)", "backbone.{1}"),
        Rule(
            r"backbone\.fpn\.((?:inner|layer)_blocks\.\d+)\.(weight|bias)",
            "head.fpn.{1}.0.{2}",
        ),
        Rule(r"backbone\.fpn\.(.+)", "head.fpn.{1}"),
        Rule(r"rpn\.head\.conv\.(weight|bias)", "head.rpn.head.conv.0.0.{1}"),
        Rule(
            r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
            "head.roi_heads.mask_head.{1-1}.0.{2}",
        ),
        Rule(r"(rpn|roi_heads)\.(.+)", "head.{1}.{2}"),
    ),
)
RESNET = Family(r"layer1\.0\.conv1\.weight")
DENSENET = Family(
    r"features\.denseblock1\..*",
    (
        # the published files have the old names of torchvision: norm.1 for norm1
        Rule(
            r"features\.denseblock(\d+)\.denselayer(\d+)\.norm\.?(\d)\.(.+)",
            "layer{1}.{2-1}.bn{3}.{4}",
        ),
        Rule(
            r"features\.denseblock(\d+)\.denselayer(\d+)\.conv\.?(\d)\.(.+)",
            "layer{1}.{2-1}.conv{3}.{4}",
        ),
        Rule(r"features\.transition(\d+)\.norm\.(.+)", "enter{1+1}.bn1.{2}"),
        Rule(r"features\.transition(\d+)\.conv\.(.+)", "enter{1+1}.conv1.{2}"),
        Rule(r"features\.conv0\.(.+)", "conv1.{1}"),
        Rule(r"features\.norm0\.(.+)", "bn1.{1}"),
        Rule(r"features\.norm5\.(.+)", "tail.bn1.{1}"),
        Rule(r"classifier\.(.+)", "fc.{1}"),
    ),
)
CONVNEXT = Family(
    r"features\.1\.0\.block\.0\.weight",
    (
        Rule(r"features\.0\.0\.(.+)", "conv1.{1}"),
        Rule(r"features\.0\.1\.(.+)", "norm1.{1}"),
        *(
            rule
            for stage in (1, 2, 3, 4)
            for rule in (
                *(
                    Rule(
                        rf"features\.{2 * stage - 1}\.(\d+)\.block\.{index}\.(.+)",
                        f"layer{stage}.{{1}}.{name}.{{2}}",
                        "conv1",
                    )
                    for index, name in ((0, "conv1"), (2, "norm1"), (3, "conv2"), (5, "conv3"))
                ),
                Rule(
                    rf"features\.{2 * stage - 1}\.(\d+)\.layer_scale",
                    f"layer{stage}.{{1}}.scale1.gamma",
                ),
                Rule(rf"features\.{2 * stage}\.0\.(.+)", f"enter{stage + 1}.norm1.{{1}}"),
                Rule(rf"features\.{2 * stage}\.1\.(.+)", f"enter{stage + 1}.conv1.{{1}}"),
            )
        ),
        Rule(r"classifier\.0\.(.+)", "tail.norm1.{1}"),
        Rule(r"classifier\.2\.(.+)", "fc.{1}"),
    ),
)
VGG = Family(
    r"classifier\.3\.weight",
    (
        Rule(r"classifier\.0\.(.+)", "tail.fc1.{1}"),
        Rule(r"classifier\.3\.(.+)", "tail.fc2.{1}"),
        Rule(r"classifier\.6\.(.+)", "fc.{1}"),
    ),
    counted=r"features\.(\d+)\.(.+)",
    among=r"layer\d+\.\d+\.(conv|bn)1",
)
ALEXNET = Family(
    r"classifier\.4\.weight",
    (
        Rule(r"features\.0\.(.+)", "layer1.0.{1}"),
        Rule(r"features\.3\.(.+)", "layer2.0.{1}"),
        Rule(r"features\.6\.(.+)", "layer3.0.{1}"),
        Rule(r"features\.8\.(.+)", "layer4.0.{1}"),
        Rule(r"features\.10\.(.+)", "layer5.0.{1}"),
        Rule(r"classifier\.1\.(.+)", "tail.3.{1}"),
        Rule(r"classifier\.4\.(.+)", "tail.6.{1}"),
        Rule(r"classifier\.6\.(.+)", "fc.{1}"),
    ),
)
# plusx builds no auxiliary classifiers
GOOGLENET = Family(r"inception3a\..*", (Rule(r"aux[12]\..*", ""),))
VIDEO_RESNET = Family(
    r"stem\.0\.weight",
    (
        Rule(r"stem\.0\.(.+)", "conv1.{1}"),
        Rule(r"stem\.1\.(.+)", "bn1.{1}"),
        Rule(r"(layer\d+\.\d+)\.conv(\d)\.0\.(.+)", "{1}.conv{2}.{3}"),
        Rule(r"(layer\d+\.\d+)\.conv(\d)\.1\.(.+)", "{1}.bn{2}.{3}"),
    ),
)
CIFAR_RESNET = Family(r"linear\.weight", (Rule(r"linear\.(.+)", "fc.{1}"),))
TIMM_RESNET = Family(
    r"layer1\.0\.conv1\.weight",
    (
        Rule(r"(layer\d+\.\d+)\.se\.(fc[12])\.(.+)", "{1}.se1.{2}.{3}"),
        Rule(r"(layer\d+\.\d+)\.se\.conv\.(.+)", "{1}.eca1.conv.{2}"),
    ),
)
# the deep stem of ResNet-D is a Sequential without its last norm
TIMM_RESNET_D = Family(
    r"conv1\.6\.weight",
    (
        Rule(r"conv1\.0\.(.+)", "conv1.{1}"),
        Rule(r"conv1\.1\.(.+)", "bn1.{1}"),
        Rule(r"conv1\.3\.(.+)", "conv2.{1}"),
        Rule(r"conv1\.4\.(.+)", "bn2.{1}"),
        Rule(r"conv1\.6\.(.+)", "conv3.{1}"),
        Rule(r"bn1\.(.+)", "bn3.{1}"),
        *TIMM_RESNET.rules,
    ),
)
# Keras numbers the layers of the whole model
KERAS_WEIGHTS = {
    "conv2d": "conv1",
    "conv2d_1": "layer1.0.conv1",
    "conv2d_2": "layer1.0.conv2",
    "conv2d_3": "layer2.0.conv1",
    "conv2d_4": "layer2.0.conv2",
    "conv2d_5": "layer2.0.downsample.0",
    "conv2d_6": "layer3.0.conv1",
    "conv2d_7": "layer3.0.conv2",
    "conv2d_8": "layer3.0.downsample.0",
    "dense": "fc",
}
KERAS_NORMS = {
    "batch_normalization": "bn1",
    "batch_normalization_1": "layer1.0.bn1",
    "batch_normalization_2": "layer1.0.bn2",
    "batch_normalization_3": "layer2.0.bn1",
    "batch_normalization_4": "layer2.0.bn2",
    "batch_normalization_5": "layer3.0.bn1",
    "batch_normalization_6": "layer3.0.bn2",
}
KERAS_NORM_TENSORS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
KERAS_RESNET8 = Family(
    r"conv2d\.kernel",
    (
        *(
            Rule(rf"{keras}\.kernel", f"{name}.weight", "keras")
            for keras, name in KERAS_WEIGHTS.items()
        ),
        *(Rule(rf"{keras}\.bias", f"{name}.bias") for keras, name in KERAS_WEIGHTS.items()),
        *(
            Rule(rf"{keras}\.{keras_tensor}", f"{name}.{tensor}")
            for keras, name in KERAS_NORMS.items()
            for keras_tensor, tensor in KERAS_NORM_TENSORS.items()
        ),
    ),
)


# source: its families; the first whose mark matches is used
SOURCES: dict[str, tuple[Family, ...]] = {
    "plusx": (),
    "torchvision": (
        SEGMENTATION,
        DETECTION,
        DENSENET,
        CONVNEXT,
        VGG,
        ALEXNET,
        GOOGLENET,
        VIDEO_RESNET,
        RESNET,
    ),
    "akamaster": (CIFAR_RESNET,),
    "timm": (TIMM_RESNET_D, TIMM_RESNET, DENSENET),
    "keras": (KERAS_RESNET8,),
}


# prefixes of all names in a file, by torch.compile, nn.DataParallel, or a module that contains the
# network as an attribute
PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "network.", "net.", "encoder.")


def rename(
    tensors: Mapping[str, Tensor], source: str, names: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors with plusx names, and their axes in torch's order.

    `names` are the network's state dict names in order, which `Family.counted` needs. Raises
    UserError for an unknown source, or if two tensors get the same name.
    """
    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}; sources are {', '.join(SOURCES)}")
    if source != "plusx":
        length = len(common_prefix(tensors))
        tensors = {name[length:]: tensor for name, tensor in tensors.items()}
    family = _family(tensors, source)
    if family is None:
        return dict(tensors)
    counted = _by_order(family, tensors, names) if family.counted else {}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new, change = counted.get(name, ""), ""
        if not new:
            new, change = _apply(family.rules, name)
        if new in renamed:
            raise UserError(f"two tensors are renamed to {new!r}; the second is {name!r}")
        if new:
            renamed[new] = _changed(tensor, change)
    return renamed


def common_prefix(names: Collection[str]) -> str:
    """Return the longest sequence of PREFIXES that all names begin with."""
    prefix = ""
    while names:
        added = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in names)]
        if not added:
            break
        prefix += added[0]
    return prefix


def _family(tensors: Mapping[str, Tensor], source: str) -> Family | None:
    for family in SOURCES[source]:
        if any(re.fullmatch(family.mark, name) for name in tensors):
            return family
    return None


def _apply(rules: tuple[Rule, ...], name: str) -> tuple[str, str]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return _filled(rule.name, match), rule.change
    return name, ""


def _filled(template: str, match: re.Match[str]) -> str:
    def group(field: re.Match[str]) -> str:
        text = match[int(field[1])]
        return str(int(text) + int(field[2])) if field[2] else text

    return re.sub(r"\{(\d+)([+-]\d+)?\}", group, template)


def _by_order(family: Family, tensors: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return the new names of the layers that `Family.counted` matches by their order."""
    matches = [match for name in tensors if (match := re.fullmatch(family.counted, name))]
    numbers = sorted({int(match[1]) for match in matches})
    modules = [
        module
        for module in dict.fromkeys(name.rpartition(".")[0] for name in names)
        if re.fullmatch(family.among, module)
    ]
    # not strict: for a network of another depth the remaining names are reported as unused
    module_of = dict(zip(numbers, modules))
    return {
        match[0]: f"{module_of[int(match[1])]}.{match[2]}"
        for match in matches
        if int(match[1]) in module_of
    }


def _changed(tensor: Tensor, change: str) -> Tensor:
    if change == "conv1" and tensor.ndim == 2:
        return tensor[:, :, None, None]
    if change == "keras" and tensor.ndim >= 2:
        return tensor.movedim((-1, -2), (0, 1)).contiguous()
    return tensor
