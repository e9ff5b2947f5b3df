"""The tables of a recipe as frozen data; those that come in kinds are told apart by `kind`."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, InstanceOf, Strict, Tag
from pydantic.dataclasses import dataclass

from plusx.errors import UserError
from plusx.grammar.heads import Head, refuse_types
from plusx.grammar.spec import Activation, Net, Norm
from plusx.recipe import studies
from plusx.recipe.sets import Data
from plusx.recipe.values import (
    CONFIG,
    Count,
    CountOrFraction,
    Fraction,
    NonNegative,
    Positive,
    PositiveFraction,
    Rate,
    StrictBool,
)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NetByName:
    """A network of the zoo. What is left out is the zoo's, or follows from the data."""

    base: str
    # to begin from: a safetensors file, an earlier run's folder, or the name of torchvision's
    weights: str = ""
    # what is trained: all, the head alone, or so many of the last stages and the head
    train: Literal["all", "head"] | Positive = "all"
    freeze_norms: StrictBool = (
        False  # batch norms keep the statistics and parameters they begin with
    )
    in_channels: Positive | None = None  # None: the data's
    num_classes: Positive | None = None  # None: the data's
    size: Positive | None = None  # None: the data's
    ndim: Literal[1, 2, 3] | None = None  # 3: the same sentence, said of volumes
    norm: Norm | None = None
    affine: StrictBool | None = None
    act: Activation | None = None
    drop_path: Fraction | None = None
    drop_mode: Literal["batch", "row"] | None = None
    tail: str | None = None  # the sentence between the last stage and the head


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Init:
    """How parameters begin; external modules and weights that are loaded begin as they are."""

    rule: Literal["he", "he_fan_in", "normal0.01", "truncated", "pytorch"] | None = None
    zero_last_gamma: StrictBool = False  # the last norm of every branch before a + begins at 0
    gate_bias: Annotated[float, Strict()] = -2.0  # where the gates of `~` and `gate` begin
    whiten: StrictBool = (
        False  # the first convolution whitens patches of training images, untrained
    )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Classify:
    kind: Literal["classify"] = "classify"
    label_smoothing: Fraction = 0.0
    class_weights: Literal["none", "balanced"] | tuple[Rate, ...] = "none"
    multilabel: StrictBool = False


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Segment:
    """A class for every position."""

    kind: Literal["segment"] = "segment"
    # words that are added: cross-entropy dice focal tversky lovasz
    loss: str = "cross-entropy"
    # by how many positions each class has; root: of the square root of its share
    class_weights: Literal["none", "balanced", "root"] | tuple[Rate, ...] = "none"
    background: str = ""  # the class that is what is left over, which Dice leaves out
    window: tuple[Positive, ...] | None = None  # positions looked at at a time; None: the whole
    overlap: Fraction = 0.5  # what two windows have in common
    spacing: tuple[Rate, Rate, Rate] | None = None  # mm a position, of volumes; None: the data's


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Detect:
    """Boxes, and with [head] kind = "mask-rcnn" a mask for each."""

    kind: Literal["detect"] = "detect"
    score_threshold: Fraction = 0.05  # boxes of a lower score are dropped
    nms_iou: Fraction = 0.6  # of the per-class non-maximum suppression
    max_detections: Positive = 100  # boxes of an image


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Embed:
    """Vectors that are near each other where two images show the same."""

    kind: Literal["embed"] = "embed"
    loss: Literal["arcface", "triplet"] = "arcface"
    margin: Rate = 0.5
    scale: Rate = 64.0  # of the cosines, with arcface
    width: Positive = 128  # of the vectors, which the network's linear layer makes
    far: Fraction = 0.01  # false-accept rate of the true-accept rate, and of galleries


TaskTable = Annotated[Classify | Segment | Detect | Embed, Discriminator("kind")]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Sgd:
    kind: Literal["sgd"] = "sgd"
    lr: Rate
    momentum: Fraction = 0.9
    nesterov: StrictBool = False
    weight_decay: NonNegative = 1e-4
    decay_norms: StrictBool = True  # whether norms and biases decay too, as in the ResNet papers
    clip: Rate | None = None  # the largest norm of the gradient; None: not clipped
    accumulation_steps: Positive = 1  # a batch is computed in so many parts
    ema: Fraction = 0.0  # decay of the exponential moving average of the weights; 0: none
    layer_decay: PositiveFraction = 1.0  # rate of a stage, divided by that of the next one


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class AdamW:
    kind: Literal["adamw"] = "adamw"
    lr: Rate
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 0.05
    decay_norms: StrictBool = False
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: Fraction = 0.0
    layer_decay: PositiveFraction = 1.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Muon:
    kind: Literal["muon"] = "muon"
    lr: Rate  # of filters; the schedule scales the other two alike
    momentum: Fraction = 0.6
    iterations: Positive = 3  # of Newton and Schulz
    head_lr: Rate = 1.0  # of all other weights, by SGD
    bias_lr: Rate = 0.1  # of biases and norms, by SGD
    sgd_momentum: Fraction = 0.85
    weight_decay: NonNegative = 0.0  # of the other weights
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Constant:
    kind: Literal["constant"] = "constant"
    warmup: CountOrFraction = 0
    warmup_until: Fraction = (
        0.0  # hold `warmup_lr` until the training error is below this; 0: never
    )
    warmup_lr: Rate = 0.01


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Steps:
    kind: Literal["steps"] = "steps"
    milestones: tuple[CountOrFraction, ...]
    gamma: Rate = 0.1
    warmup: CountOrFraction = 0
    warmup_until: Fraction = 0.0
    warmup_lr: Rate = 0.01


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Cosine:
    kind: Literal["cosine"] = "cosine"
    warmup: CountOrFraction = 0
    warmup_until: Fraction = 0.0
    warmup_lr: Rate = 0.01
    end: NonNegative = 0.0  # the rate at the last step


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OneCycle:
    kind: Literal["one-cycle"] = "one-cycle"
    rise: Rate = 0.3  # the share of the run until the peak


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Device:
    kind: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    # auto: bfloat16 where it is quicker; what was chosen stands in the run's recipe.toml
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: StrictBool = True
    compile: StrictBool = False
    memory: Literal["keep", "recompute", "segments"] = "keep"  # what is kept for the backward pass
    threads: Count = 0  # 0: as torch chooses
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: copies, or sharded (FSDP2)
    timeout: Rate = 300.0  # seconds in which one of several processes has to go on


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Evaluate:
    every: Count = 1  # epochs; 0: at the end alone
    train_set: StrictBool = True  # whether a finished run is evaluated on its training images too
    patience: Count = 0  # evaluations without a better one before the run stops; 0: never
    keep: Literal["last", "best"] | None = None  # None: the best with patience, else the last
    monitor: str | None = None  # metric that chooses the best weights; None: the task's foremost
    # test-time augmentation: views of an input that predictions are averaged over
    tta: Literal["none", "flip", "flip-shift"] = "none"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Checkpoint:
    every_seconds: NonNegative = 30.0  # 0: not by the clock
    every_steps: Count = 0  # 0: not by steps
    keep: Positive = 2


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Compare:
    networks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[Count, ...] = Field(default=(0, 1, 2), min_length=1)
    threshold: Fraction = 0.9  # the accuracy whose first epoch is reported


def _net_tag(value: object) -> str:
    return "inline" if isinstance(value, Net) else "named"


def _typed_head(value: object) -> object:
    """Text is no number here either."""
    if isinstance(value, dict):
        refuse_types(value)
    return value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Recipe:
    seed: Count = 0
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_size: Positive = 128
    net: Annotated[
        Annotated[NetByName, Tag("named")] | Annotated[InstanceOf[Net], Tag("inline")],
        Discriminator(_net_tag),
    ]
    init: Init = Init()
    task: TaskTable = Classify()
    # None: the network's own
    head: Annotated[Head, Discriminator("kind"), BeforeValidator(_typed_head)] | None = None
    data: Annotated[Data, Discriminator("kind")]
    optim: Annotated[Sgd | AdamW | Muon, Discriminator("kind")]
    schedule: Annotated[Constant | Steps | Cosine | OneCycle, Discriminator("kind")] = Constant()
    device: Device = Device()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    compare: Compare | None = None
    study: Annotated[studies.Study, Discriminator("kind")] | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError("the length of a run is given by epochs or by steps: give one of them")
        if (
            self.evaluate.monitor is None
            and self.task.kind == "classify"
            and not self.task.multilabel
        ):
            # explicit, so that recipes of classifiers stay what they were before there were others
            object.__setattr__(self, "evaluate", replace(self.evaluate, monitor="accuracy"))
        if self.optim.kind == "muon" and self.device.parallel == "fsdp":
            raise UserError('muon needs whole filters: [device] parallel = "ddp", not "fsdp"')

    @property
    def net_by_name(self) -> NetByName | None:
        """[net] where it names a network of the zoo; None for a spec."""
        return self.net if isinstance(self.net, NetByName) else None

    @property
    def net_name(self) -> str | None:
        """The name of the network; None for a spec."""
        return None if self.net_by_name is None else self.net_by_name.base
