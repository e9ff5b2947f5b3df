"""Heads on the features of a network, other than the linear one, as frozen data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

from plusx.errors import UserError, did_you_mean


# configuration of pydantic for recipes: no unknown keys
STRICT = {"extra": "forbid"}
MAX_WIDTH = 65_536


HeadTask = Literal["segment", "detect", "decode", "transcribe"]


class HeadTraits:
    """Properties of all heads of a class.

    task: what the head predicts: classes of positions, boxes, or a sequence of tokens; two_stage:
    region proposals first, then a class and a box for each; has_masks: a mask for each box;
    dilates: `stride` is reached by dilation.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT
    task: ClassVar[HeadTask] = "segment"
    two_stage: ClassVar[bool] = False
    has_masks: ClassVar[bool] = False
    dilates: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Fcn(HeadTraits):
    """A fully convolutional head (Long et al. 2015), in torchvision's form.

    stride: of the features, by dilation instead of striding; 32 leaves them unchanged. auxiliary: a
    second head on the last stage but one, in training.
    """

    dilates: ClassVar[bool] = True
    kind: Literal["fcn"] = "fcn"
    stride: Literal[8, 16, 32] = 8
    auxiliary: bool = False


@dataclass(frozen=True, kw_only=True)
class DeepLab(HeadTraits):
    """DeepLabV3 (Chen et al. 2017): parallel dilated convolutions of several rates."""

    dilates: ClassVar[bool] = True
    kind: Literal["deeplabv3"] = "deeplabv3"
    stride: Literal[8, 16] = 8
    auxiliary: bool = False


@dataclass(frozen=True, kw_only=True)
class UNet(HeadTraits):
    """A U-Net decoder (Ronneberger et al. 2015) in 1-D, 2-D and 3-D.

    It uses the input, the maps of the stem and all stages. width: channels at the finest
    resolution; every coarser one has twice as many, up to 8 times.
    """

    kind: Literal["unet"] = "unet"
    width: int = 32

    def __post_init__(self) -> None:
        _within("width", self.width, 1, MAX_WIDTH)


@dataclass(frozen=True, kw_only=True)
class Fcos(HeadTraits):
    """An anchor-free one-stage detector (Tian et al. 2019) on a narrow feature pyramid.

    width: channels of the pyramid and the towers; depth: convolutions in each tower; finest:
    smallest stride of a stage that the pyramid uses; levels: number of levels, the coarser ones by
    convolutions with stride 2.
    """

    task: ClassVar[HeadTask] = "detect"
    kind: Literal["fcos"] = "fcos"
    width: int = 64
    depth: int = 2
    finest: Literal[2, 4, 8, 16] = 8
    levels: int = 4

    def __post_init__(self) -> None:
        _within("width", self.width, 1, MAX_WIDTH)
        _within("depth", self.depth, 0, 16)
        _within("levels", self.levels, 1, 8)


Anchor = tuple[int, int]
# Redmon and Farhadi 2018, section 2.3: for COCO's boxes in images of 416 x 416 pixels
COCO_ANCHORS: tuple[Anchor, ...] = (
    (10, 13),
    (16, 30),
    (33, 23),
    (30, 61),
    (62, 45),
    (59, 119),
    (116, 90),
    (156, 198),
    (373, 326),
)


@dataclass(frozen=True, kw_only=True)
class Yolo(HeadTraits):
    """YOLOv3 (Redmon and Farhadi 2018): three resolutions, three anchors each.

    anchors: width and height of nine boxes in pixels of the input, those of the finest resolution
    first.
    """

    task: ClassVar[HeadTask] = "detect"
    kind: Literal["yolo"] = "yolo"
    anchors: tuple[Anchor, ...] = COCO_ANCHORS

    def __post_init__(self) -> None:
        if len(self.anchors) != 9:
            raise UserError(f"anchors: {len(self.anchors)} are given; 9 are needed")
        if any(side < 1 for anchor in self.anchors for side in anchor):
            raise UserError("anchors: each is [width, height] in pixels, from 1")


@dataclass(frozen=True, kw_only=True)
class FasterRcnn(HeadTraits):
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017), by torchvision.

    width: channels of the pyramid; anchors: the side of the square anchor on each level, finest
    first, in pixels of the input; frozen_norms: the backbone's batch norms are constants, as in
    torchvision's trained detectors; regions: sampled proposals per image in training, a quarter of
    them positives.
    """

    task: ClassVar[HeadTask] = "detect"
    two_stage: ClassVar[bool] = True
    kind: Literal["faster-rcnn"] = "faster-rcnn"
    width: int = 256
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    frozen_norms: bool = False
    regions: int = 512

    def __post_init__(self) -> None:
        _within("width", self.width, 1, MAX_WIDTH)
        _within("regions", self.regions, 1, 4096)
        if not self.anchors or min(self.anchors) < 1:
            raise UserError("anchors: one side per level is needed, in pixels, at least 1")


@dataclass(frozen=True, kw_only=True)
class MaskRcnn(FasterRcnn):
    """Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each box, by torchvision."""

    kind: Literal["mask-rcnn"] = "mask-rcnn"  # type: ignore[assignment]
    has_masks: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class ConvDecoder(HeadTraits):
    """A decoder of tokens by convolutions (Gehring et al. 2017): causal residual blocks with gated
    linear units and attention to all positions of the features, in every block.

    width: channels of the blocks; embed: width of token embeddings, keys and queries; kernel:
    tokens that a block uses, the last one and those before it; shared_attention: all blocks use
    the same projections of queries and contexts; tied: the output layer has the weights of the
    embedding; residual: False is the plain twin; max_length: tokens of an output, with its end.
    """

    task: ClassVar[HeadTask] = "decode"
    kind: Literal["conv-decoder"] = "conv-decoder"
    width: int = 256
    depth: int = 3
    kernel: int = 3
    embed: int = 256
    dropout: float = 0.1
    shared_attention: bool = False
    tied: bool = False
    residual: bool = True
    max_length: int = 100

    def __post_init__(self) -> None:
        _check_decoder(self)
        _within("embed", self.embed, 1, MAX_WIDTH)
        _within("kernel", self.kernel, 1, 99)


@dataclass(frozen=True, kw_only=True)
class TransformerDecoder(HeadTraits):
    """A transformer decoder of tokens (Vaswani et al. 2017) with pre-norm layers: causal
    self-attention, attention to all positions of the features, and two linear layers.

    width: of embeddings and layers; hidden: units between the two linear layers; tied: the output
    layer has the weights of the embedding; residual: False is the plain twin; max_length: tokens
    of an output, with its end.
    """

    task: ClassVar[HeadTask] = "decode"
    kind: Literal["transformer-decoder"] = "transformer-decoder"
    width: int = 256
    depth: int = 3
    heads: int = 4
    hidden: int = 1024
    dropout: float = 0.1
    tied: bool = False
    residual: bool = True
    max_length: int = 100

    def __post_init__(self) -> None:
        _check_decoder(self)
        _within("hidden", self.hidden, 1, MAX_WIDTH)
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"heads = {self.heads}: must divide the width, {self.width}")


@dataclass(frozen=True, kw_only=True)
class Ctc(HeadTraits):
    """Logits of every token and of the blank at each position of a sequence, for connectionist
    temporal classification (Graves et al. 2006)."""

    task: ClassVar[HeadTask] = "transcribe"
    kind: Literal["ctc"] = "ctc"


Head = (
    Fcn
    | DeepLab
    | UNet
    | Fcos
    | Yolo
    | FasterRcnn
    | MaskRcnn
    | ConvDecoder
    | TransformerDecoder
    | Ctc
)
HEADS: dict[str, type[Head]] = {head.kind: head for head in get_args(Head)}
SEGMENTERS = tuple(kind for kind, head in HEADS.items() if head.task == "segment")
DETECTORS = tuple(kind for kind, head in HEADS.items() if head.task == "detect")
DECODERS = tuple(kind for kind, head in HEADS.items() if head.task == "decode")
TRANSCRIBERS = tuple(kind for kind, head in HEADS.items() if head.task == "transcribe")


def head_to_dict(head: Head) -> dict[str, Any]:
    """Return the head as a plain mapping with every field; tuples become lists."""
    return {key: _listed(value) for key, value in asdict(head).items()}


def head_from_dict(mapping: Mapping[str, Any]) -> Head:
    """Return the head of a mapping. Raises UserError, with the field, if it is invalid."""
    kind = mapping.get("kind")
    if kind not in HEADS:
        hint = did_you_mean(str(kind), HEADS)
        raise UserError(f"there is no head {kind!r}{hint} (heads: {', '.join(HEADS)})")
    cls = HEADS[kind]
    names = [field.name for field in fields(cls)]
    for key in mapping:
        if key not in names:
            raise UserError(f"a head {kind!r} has no field {key!r}; it has {', '.join(names)}")
    check_field_types(mapping)
    values = {key: _tupled(value) for key, value in mapping.items()}
    for field in fields(cls):
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        if choices and field.name in values and values[field.name] not in choices:
            options = " or ".join(map(str, choices))
            raise UserError(f"{field.name} = {values[field.name]!r}: must be {options}")
    return cls(**values)


def check_field_types(mapping: Mapping[str, Any]) -> None:
    """Raise UserError for a value of another type than its field, such as text for a number."""
    cls = HEADS.get(str(mapping.get("kind")))
    for field in () if cls is None else fields(cls):
        value = _tupled(mapping.get(field.name, field.default))
        if not _like(value, field.default):
            raise UserError(f"{field.name} = {value!r}: must be like {_listed(field.default)}")


def _like(value: Any, example: Any) -> bool:
    """Whether a value has the type of the example, and its items those of the example's items."""
    if isinstance(example, tuple):
        return isinstance(value, tuple) and all(_like(item, example[0]) for item in value)
    return type(value) is type(example)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} = {value}: must be from {low} to {high:,}")


def _check_decoder(head: ConvDecoder | TransformerDecoder) -> None:
    _within("width", head.width, 1, MAX_WIDTH)
    _within("depth", head.depth, 1, 100)
    if not 0 <= head.dropout < 1:
        raise UserError(f"dropout = {head.dropout}: must be a probability, from 0 to below 1")
    _within("max_length", head.max_length, 1, 10_000)
