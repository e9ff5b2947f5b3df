"""The tables of a recipe as frozen data; variants of a table are distinguished by `kind`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, InstanceOf, Strict, Tag
from pydantic.dataclasses import dataclass

from plusx.errors import UserError
from plusx.grammar.heads import Head, check_field_types
from plusx.grammar.spec import Activation, Net, Norm
from plusx.recipe import studies
from plusx.recipe.continual import CONTINUAL_KINDS, ContinualMethod, Stream
from plusx.recipe.selfsupervised import SelfSupervised
from plusx.recipe.sets import Data
from plusx.recipe.tuning import Tune
from plusx.recipe.values import (
    CONFIG,
    ClassWeights,
    Count,
    CountOrFraction,
    Eps,
    Fraction,
    NonNegative,
    Path,
    PositionWeights,
    Positive,
    PositiveFraction,
    Rate,
    Seed,
    StepSize,
    StrictBool,
    UnitInterval,
)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class NetByName:
    """A network of the zoo. Missing fields are the zoo's, or follow from the data."""

    base: str
    # initial weights: a safetensors file, the folder of a run, or a name of torchvision
    weights: str = ""
    # trained part: all, only the head, or this number of last stages and the head
    train: Literal["all", "head"] | Positive = "all"
    freeze_norms: StrictBool = False  # do not update statistics and parameters of batch norms
    in_channels: Positive | None = None  # None: those of the data
    num_classes: Count | None = None  # 0: no head. None: those of the data
    size: Positive | None = None  # None: that of the data
    ndim: Literal[1, 2, 3] | None = None  # 3: the same sentences for volumes
    norm: Norm | None = None
    affine: StrictBool | None = None
    act: Activation | None = None
    drop_path: Fraction | None = None
    drop_mode: Literal["batch", "row"] | None = None
    tail: str | None = None  # the sentence between the last stage and the head


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Init:
    """Initialisation of parameters; external modules and loaded weights keep theirs."""

    rule: (
        Literal[
            "he",
            "he_fan_in",
            "normal0.01",
            "truncated",
            "orthogonal",
            "orthogonal_relu",
            "pytorch",
            "fixup",
        ]
        | None
    ) = None
    zero_last_gamma: StrictBool = False  # initialise the last norm of every branch before a + to 0
    gate_bias: Annotated[float, Strict()] = -2.0  # initial bias of the gates of `~` and `gate`
    whiten: StrictBool = False  # the first convolution whitens image patches and is not trained


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Classify:
    """One class per input, or with `multilabel` any number of them."""

    kind: Literal["classify"] = "classify"
    label_smoothing: Fraction = 0.0
    class_weights: ClassWeights = "none"
    multilabel: StrictBool = False


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Segment:
    """A class for every position."""

    kind: Literal["segment"] = "segment"
    # losses that are added: cross-entropy dice focal tversky lovasz
    loss: str = "cross-entropy"
    # balanced: inverse frequency of the class; root: inverse square root of it
    class_weights: PositionWeights = "none"
    background: str = ""  # the background class, which Dice excludes
    window: tuple[Positive, ...] | None = None  # positions predicted at a time; None: all
    overlap: Fraction = 0.5  # of neighbouring windows
    spacing: tuple[Rate, Rate, Rate] | None = None  # mm per voxel; None: that of the data


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Detect:
    """Boxes, and with [head] kind = "mask-rcnn" a mask for each."""

    kind: Literal["detect"] = "detect"
    score_threshold: Fraction = 0.05  # boxes of a lower score are dropped
    nms_iou: Fraction = 0.6  # IoU threshold of the per-class non-maximum suppression
    max_detections: Positive = 100  # boxes per image


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Embed:
    """Vectors that are close to each other for two images of the same class."""

    kind: Literal["embed"] = "embed"
    loss: Literal["arcface", "triplet"] = "arcface"
    margin: Rate = 0.5
    scale: Rate = 64.0  # of the cosines, with arcface
    width: Positive = 128  # of the vectors, the output of the network's linear layer
    far: Fraction = 0.01  # false-accept rate of the true-accept rate, and of galleries


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Represent:
    """The embedding of a network without a head, trained by a [method] of self-supervised
    learning."""

    kind: Literal["represent"] = "represent"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Translate:
    """A text for each input, token by token, with [head] kind = "conv-decoder" or
    "transformer-decoder"."""

    kind: Literal["translate"] = "translate"
    label_smoothing: Fraction = 0.1
    beam: Positive = 5  # texts that are followed at the same time; 1: the best next token
    training_beam: Positive = 1  # of evaluations during training
    length_penalty: NonNegative = 1.0  # log-probabilities are divided by length ** length_penalty
    max_length: Positive | None = None  # tokens of a text with its end; None: that of the head


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Caption:
    """A description of each image, token by token, with a head as for "translate"."""

    kind: Literal["caption"] = "caption"
    label_smoothing: Fraction = 0.1
    beam: Positive = 5
    training_beam: Positive = 1
    length_penalty: NonNegative = 1.0
    max_length: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Transcribe:
    """Text of speech, by connectionist temporal classification."""

    kind: Literal["transcribe"] = "transcribe"
    beam: Positive = 1  # prefixes of the beam search in evaluation and prediction; 1: greedy


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SpokenCommand:
    """A command of a grammar for each recording, or a rejection: text of speech, decoded within
    the grammar."""

    kind: Literal["spoken-command"] = "spoken-command"
    grammar: Path  # a TOML file, or the name of a grammar that comes with plusx
    # likelihood ratio per character, to the free transcript, from which a phrase is accepted
    threshold: UnitInterval = 0.5
    beam: Positive = 1  # prefixes of the beam search for the free transcript; 1: greedy


TaskTable = Annotated[
    Classify
    | Segment
    | Detect
    | Embed
    | Represent
    | Translate
    | Caption
    | Transcribe
    | SpokenCommand,
    Discriminator("kind"),
]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class PgdTraining:
    """Training on inputs that PGD perturbs (Madry et al. 2018)."""

    kind: Literal["pgd"] = "pgd"
    norm: Literal["linf", "l2"] = "linf"
    eps: Eps  # of pixels from 0 to 1
    steps: Positive = 10
    step_size: StepSize | None = None  # None: 2.5 eps / steps
    evaluate_steps: Count = 10  # of PGD on the validation images; 0: none


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class FastTraining:
    """Training on inputs perturbed by one step from a random start (Wong et al. 2020)."""

    kind: Literal["fast"] = "fast"
    norm: Literal["linf", "l2"] = "linf"
    eps: Eps
    step_size: StepSize | None = None  # None: 1.25 eps
    evaluate_steps: Count = 10


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TradesTraining:
    """Clean loss, and divergence of the predictions for perturbed inputs (Zhang et al. 2019)."""

    kind: Literal["trades"] = "trades"
    norm: Literal["linf", "l2"] = "linf"
    eps: Eps
    steps: Positive = 10
    step_size: StepSize | None = None  # None: 2.5 eps / steps
    beta: Rate = 6.0  # weight of the divergence
    evaluate_steps: Count = 10


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Sgd:
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate
    momentum: Fraction = 0.9
    nesterov: StrictBool = False
    weight_decay: NonNegative = 1e-4
    decay_norms: StrictBool = True  # weight decay for norms and biases too, as in the ResNet papers
    clip: Rate | None = None  # largest norm of the gradient; None: no clipping
    accumulation_steps: Positive = 1  # parts in which a batch is computed
    ema: Fraction = 0.0  # decay of the exponential moving average of the weights; 0: none
    layer_decay: PositiveFraction = 1.0  # learning rate of a stage over that of the next one


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

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
class Lars:
    """SGD whose step is proportional to the norm of each layer's weights (You et al. 2017)."""

    kind: Literal["lars"] = "lars"
    lr: Rate
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    decay_norms: StrictBool = False
    trust: Rate = 0.001  # the local rate of a layer over the ratio of its norms
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: Fraction = 0.0
    layer_decay: PositiveFraction = 1.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Lamb:
    """AdamW whose step is proportional to the norm of each layer's weights (You et al. 2020)."""

    kind: Literal["lamb"] = "lamb"
    lr: Rate
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 0.01
    decay_norms: StrictBool = False
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: Fraction = 0.0
    layer_decay: PositiveFraction = 1.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Muon:
    """SGD with orthogonalised momentum for filters (Jordan et al. 2024); see plusx.train.muon."""

    kind: Literal["muon"] = "muon"
    lr: Rate  # of filters; the schedule scales the other two rates equally
    momentum: Fraction = 0.6
    iterations: Positive = 3  # of Newton-Schulz
    head_lr: Rate = 1.0  # of all other weights, by SGD
    bias_lr: Rate = 0.1  # of biases and norms, by SGD
    sgd_momentum: Fraction = 0.85
    weight_decay: NonNegative = 0.0  # of the other weights
    clip: Rate | None = None
    accumulation_steps: Positive = 1
    ema: Fraction = 0.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Constant:
    """The same learning rate at every step. `warmup`: steps, or a fraction of the run."""

    kind: Literal["constant"] = "constant"
    warmup: CountOrFraction = 0
    warmup_until: Fraction = 0.0  # use `warmup_lr` until the training error is below this; 0: off
    warmup_lr: Rate = 0.01


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Steps:
    """The learning rate, times `gamma` at each milestone: steps, or fractions of the run."""

    kind: Literal["steps"] = "steps"
    milestones: tuple[CountOrFraction, ...]
    gamma: Rate = 0.1
    warmup: CountOrFraction = 0
    warmup_until: Fraction = 0.0
    warmup_lr: Rate = 0.01


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Cosine:
    """Half a cosine from the learning rate to `end` (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup: CountOrFraction = 0
    warmup_until: Fraction = 0.0
    warmup_lr: Rate = 0.01
    end: NonNegative = 0.0  # the rate at the last step


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OneCycle:
    """One rise and one fall of the learning rate (Smith and Topin 2018)."""

    kind: Literal["one-cycle"] = "one-cycle"
    rise: Rate = 0.3  # fraction of the run before the peak


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Device:
    """Where and how a run is computed."""

    kind: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    # auto: bfloat16 if it is faster; the run's recipe.toml records the choice
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: StrictBool = True
    compile: StrictBool = False
    memory: Literal["keep", "recompute", "segments"] = "keep"  # memory plan
    threads: Count = 0  # 0: default of torch
    parallel: Literal["ddp", "fsdp"] = "ddp"  # with several processes: replicas, or sharded (FSDP2)
    timeout: Rate = 300.0  # seconds that a process waits for the others


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Evaluate:
    """Evaluation during and after training."""

    every: Count = 1  # epochs; 0: only at the end
    train_set: StrictBool = True  # evaluate a finished run on its training images too
    patience: Count = 0  # evaluations without improvement before the run stops; 0: never
    keep: Literal["last", "best"] | None = None  # None: best with patience, else last
    monitor: str | None = None  # metric that selects the best weights; None: the task's first
    # test-time augmentation: views of an input over which predictions are averaged
    tta: Literal["none", "flip", "flip-shift", "ten-crop", "multi-scale"] = "none"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Checkpoint:
    """When checkpoints are written, and how many are kept."""

    every_seconds: NonNegative = 30.0  # 0: never
    every_steps: Count = 0  # 0: never
    keep: Positive = 2


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Compare:
    """The rows of `plusx compare`: networks that are trained with the rest of the recipe."""

    networks: tuple[str, ...] = Field(min_length=1)  # names, or .toml files with a spec
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    threshold: Fraction = 0.9  # accuracy for epochs_to_threshold


def _net_tag(value: object) -> str:
    return "inline" if isinstance(value, Net) else "named"


def _typed_head(value: object) -> object:
    """Check the types of a head's values: text is not a number here either."""
    if isinstance(value, dict):
        check_field_types(value)
    return value


def fits(table: type, raw: Mapping[str, Any]) -> bool:
    """Whether a table fits the others of a recipe: methods of continual learning need a [stream],
    those of self-supervised learning have none."""
    if table in get_args(ContinualMethod):
        return "stream" in raw
    return table not in get_args(SelfSupervised) or "stream" not in raw


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Recipe:
    """A whole recipe: the tables of its TOML file."""

    seed: Seed = 0
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_size: Positive = 128
    net: Annotated[
        Annotated[NetByName, Tag("named")] | Annotated[InstanceOf[Net], Tag("inline")],
        Discriminator(_net_tag),
    ]
    init: Init = Init()
    task: TaskTable = Classify()
    # None: the head of the network
    head: Annotated[Head, Discriminator("kind"), BeforeValidator(_typed_head)] | None = None
    data: Annotated[Data, Discriminator("kind")]
    # None: no adversarial training
    adversarial: (
        Annotated[PgdTraining | FastTraining | TradesTraining, Discriminator("kind")] | None
    ) = None
    # None: ordinary supervised training
    method: Annotated[ContinualMethod | SelfSupervised, Discriminator("kind")] | None = None
    stream: Stream | None = None  # the tasks of continual learning
    optim: Annotated[Sgd | AdamW | Lars | Lamb | Muon, Discriminator("kind")]
    schedule: Annotated[Constant | Steps | Cosine | OneCycle, Discriminator("kind")] = Constant()
    device: Device = Device()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    compare: Compare | None = None
    study: Annotated[studies.Study, Discriminator("kind")] | None = None
    tune: Tune | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError("the length of a run is either epochs or steps: give one of them")
        if self.optim.kind == "muon" and self.device.parallel == "fsdp":
            raise UserError('muon needs whole filters: [device] parallel = "ddp", not "fsdp"')
        if isinstance(self.method, ContinualMethod) != (self.stream is not None):
            raise UserError(
                "continual learning needs both tables: [stream] with scenario and tasks, and "
                f"[method] with kind = {', '.join(CONTINUAL_KINDS)}"
            )

    @property
    def net_by_name(self) -> NetByName | None:
        """[net] if it names a network of the zoo; None for a spec."""
        return self.net if isinstance(self.net, NetByName) else None

    @property
    def net_name(self) -> str | None:
        """The name of the network; None for a spec."""
        return None if self.net_by_name is None else self.net_by_name.base
