"""The table [study] of a recipe: `kind` is the experiment, the other fields are what it varies.

plusx.study defines what a study measures; docs/studies.md describes every field.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar, get_args

from pydantic import Field, Strict
from pydantic.dataclasses import dataclass

from plusx.grammar.spec import Activation
from plusx.grammar.words import Merge
from plusx.recipe.values import CONFIG, Count, Fraction, Name, Positive


T = TypeVar("T")
NonEmpty: TypeAlias = Annotated[tuple[T, ...], Field(min_length=1)]
Seeds: TypeAlias = NonEmpty[Count]
Depths: TypeAlias = NonEmpty[Positive]
Names: TypeAlias = NonEmpty[str]
NormKind = Literal["batch", "none"]
Rule = Literal["he", "pytorch", "normal0.01"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Degradation:
    """Error over depth: plain, residual and pre-activation networks, with and without norms, and
    networks designed to train without them. Gradients are measured at the start and at every
    checkpoint."""

    kind: Literal["degradation"] = "degradation"
    depths: Depths = (20, 56)
    kinds: NonEmpty[
        Literal[
            "plain",
            "resnet",
            "preact_resnet",
            "fixup_resnet",
            "rezero_resnet",
            "skipinit_resnet",
        ]
    ] = (
        "plain",
        "resnet",
        "preact_resnet",
    )
    norms: NonEmpty[NormKind] = ("batch",)
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Skips:
    """Merges at equal multiply-adds: +, &, ~ and none; basic and bottleneck blocks."""

    kind: Literal["skips"] = "skips"
    depth: Positive = 20
    blocks: NonEmpty[Literal["basic", "bottleneck"]] = ("basic", "bottleneck")
    merges: NonEmpty[Merge] = ("add", "concat", "gate", "none")
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Gradients:
    """The gradient of every block, at the start and at every checkpoint."""

    kind: Literal["gradients"] = "gradients"
    networks: Names = ("plain20", "resnet20", "plain56", "resnet56")
    norms: NonEmpty[NormKind] = ("batch", "none")
    rules: NonEmpty[Rule] = ("he", "pytorch", "normal0.01")
    acts: NonEmpty[Activation] = ("relu", "tanh", "sigmoid")
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Responses:
    """The response of each layer (He et al. 2015, figure 7)."""

    kind: Literal["responses"] = "responses"
    networks: Names = ("plain20", "resnet20", "plain56", "resnet56")
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Convergence:
    """Epochs and seconds until an accuracy is reached."""

    kind: Literal["convergence"] = "convergence"
    networks: Names
    threshold: Fraction = 0.9
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Generalisation:
    """The gap between training and validation, over depth, remedies and the amount of data."""

    kind: Literal["generalisation"] = "generalisation"
    depths: Depths = (20, 56)
    remedies: NonEmpty[
        Literal["none", "dropout", "stochastic-depth", "weight-decay", "augmentation"]
    ] = ("none", "dropout", "stochastic-depth", "weight-decay", "augmentation")
    shares: NonEmpty[Annotated[float, Strict(), Field(gt=0, le=1)]] = (0.01, 0.1, 1.0)
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Ablation:
    """The shortcuts and layer orders of He et al. 2016, tables 1 and 2."""

    kind: Literal["ablation"] = "ablation"
    depth: Positive = 56
    variants: tuple[str, ...] = ()  # (): all of both tables
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Lesion:
    """The error after deleting each block (Veit et al. 2016)."""

    kind: Literal["lesion"] = "lesion"
    networks: tuple[str, ...] = ()  # trained by the recipe; (): only [net]
    split: Literal["validation", "test"] = "validation"
    images: Positive = 1000  # at most, from that split
    counts: tuple[Positive, ...] = (1, 2, 4, 8)  # numbers of blocks deleted at once
    draws: Positive = 5  # random choices of blocks for each count
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Paths:
    """The lengths of paths and their gradients (Veit et al. 2016)."""

    kind: Literal["paths"] = "paths"
    networks: Names = ("resnet56",)
    samples: Positive = 16  # paths of each length
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Surface:
    """The loss around the weights, in one and two dimensions (Li et al. 2018)."""

    kind: Literal["surface"] = "surface"
    networks: Names = ("plain56", "resnet56")
    points: Positive = 25  # per dimension
    span: Annotated[float, Strict(), Field(gt=0)] = 1.0
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Thousand:
    """Networks of a thousand layers: built, trained for one step, with the gradient of every
    block."""

    kind: Literal["thousand"] = "thousand"
    networks: Names = ("preact_resnet1001", "resnet1202")
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Tables:
    """Three tables: quality; epochs and time to convergence; parameters against error."""

    kind: Literal["tables"] = "tables"
    networks: Names
    twins: bool = True  # include each residual network without its skips
    threshold: Fraction = 0.9
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Transfer:
    """Few images of the classes of [data], from scratch and from weights of other classes."""

    kind: Literal["transfer"] = "transfer"
    networks: Names = ("resnet20",)
    classes: Annotated[tuple[Name, ...], Field(min_length=2)]  # for pretraining
    epochs: Positive = 10  # of pretraining
    # values of [net] train, or "scratch": without pretraining
    ways: NonEmpty[Literal["scratch", "all", "head"] | Positive] = ("scratch", "head", "all")
    split: Literal["validation", "test"] = "validation"  # for evaluation
    seeds: Seeds = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Attention:
    """Kinds of attention, and none, in a residual network at equal multiply-adds."""

    kind: Literal["attention"] = "attention"
    depth: Positive = 20
    kinds: NonEmpty[Literal["se", "eca", "cbam", "nonlocal", "mhsa", "hybrid"]] = (
        "se",
        "eca",
        "cbam",
        "nonlocal",
        "mhsa",
        "hybrid",
    )
    seeds: Seeds = (0, 1, 2)


Remedy = Literal[
    "none",
    "tanh",
    "orthogonal",
    "tanh-orthogonal",
    "batch-norm",
    "skips",
    "fixup",
    "rezero",
    "skipinit",
    "skips-batch-norm",
]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Remedies:
    """What makes a deep plain network trainable: activation, initialisation, norms, skips."""

    kind: Literal["remedies"] = "remedies"
    depth: Positive = 56
    remedies: NonEmpty[Remedy] = get_args(Remedy)
    seeds: Seeds = (0, 1, 2)


Study: TypeAlias = (
    Degradation
    | Skips
    | Gradients
    | Responses
    | Convergence
    | Generalisation
    | Ablation
    | Lesion
    | Paths
    | Surface
    | Thousand
    | Tables
    | Transfer
    | Attention
    | Remedies
)
