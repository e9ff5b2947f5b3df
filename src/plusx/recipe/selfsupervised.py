"""The tables [method] of self-supervised learning; the fields are those of the method's class."""

from typing import Literal

from pydantic.dataclasses import dataclass

from plusx.recipe.values import CONFIG, Fraction, NonNegative, Positive, Rate, StrictBool


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SimClr:
    """The other view of an image among all views of a batch (Chen et al. 2020)."""

    kind: Literal["simclr"] = "simclr"
    temperature: Rate = 0.5  # divides the cosines
    hidden: Positive = 512  # width of the projector's hidden layer
    width: Positive = 128  # of the projections


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Byol:
    """A teacher's projection of the other view is predicted (Grill et al. 2020)."""

    kind: Literal["byol"] = "byol"
    momentum: Fraction = 0.99  # of the teacher
    hidden: Positive = 512  # width of the hidden layers of projector and predictor
    width: Positive = 128


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SimSiam:
    """The network's own projection of the other view is predicted (Chen and He 2021)."""

    kind: Literal["simsiam"] = "simsiam"
    stop_gradient: StrictBool = True  # false: collapse, as in section 4.1 of the paper
    hidden: Positive = 512
    width: Positive = 512
    bottleneck: Positive = 128  # width of the predictor's hidden layer


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class BarlowTwins:
    """The cross-correlation of two views should be the identity (Zbontar et al. 2021)."""

    kind: Literal["barlow"] = "barlow"
    redundancy: NonNegative = 0.005  # weight of the off-diagonal elements, lambda in the paper
    hidden: Positive = 512
    width: Positive = 512


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MoCo:
    """The other view of an image among a queue of earlier ones (He et al. 2020), with the projector
    of version 2 (Chen et al. 2020)."""

    kind: Literal["moco"] = "moco"
    temperature: Rate = 0.2
    momentum: Fraction = 0.99  # of the teacher
    queue: Positive = 1024  # number of keys
    hidden: Positive = 512
    width: Positive = 128


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SupCon:
    """All views of the same class among all views of a batch; it uses the labels (Khosla et al.
    2020)."""

    kind: Literal["supcon"] = "supcon"
    temperature: Rate = 0.1
    hidden: Positive = 512
    width: Positive = 128


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Rotation:
    """By which of four angles is an image rotated? (Gidaris et al. 2018.)"""

    kind: Literal["rotation"] = "rotation"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Autoencoder:
    """The image is reconstructed from its embedding, by a decoder of residual blocks."""

    kind: Literal["autoencoder"] = "autoencoder"


SelfSupervised = SimClr | Byol | SimSiam | BarlowTwins | MoCo | SupCon | Rotation | Autoencoder
