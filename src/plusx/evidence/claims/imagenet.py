"""Errors on ImageNet in percent. They need its images, which nobody may hand on."""

from plusx.evidence.claims.claim import Claim
from plusx.evidence.claims.errors import TOLERANCE
from plusx.evidence.claims.protocols import PROTOCOLS


_TEN_CROP = "ten crops of an image, and a schedule: He 2015 lowered the rate by hand"
_BY_HAND = "the schedule: He 2015 lowered the rate by hand whenever the error stood still"
_ENSEMBLE = "an ensemble of six networks at several scales, and the labels of the test images"

# Ten crops, top-1 and top-5; None is not printed.
TEN_CROP: dict[str, tuple[float | None, float | None, str]] = {
    "plain18": (27.94, None, "He 2015, table 2"),
    "resnet18": (27.88, None, "He 2015, table 2, there with shortcut A"),
    "plain34": (28.54, None, "He 2015, table 2"),
    "resnet34_a": (25.03, 7.76, "He 2015, table 3"),
    "resnet34": (24.52, 7.46, "He 2015, table 3"),
    "resnet34_c": (24.19, 7.40, "He 2015, table 3"),
    "resnet50_v1": (22.85, 6.71, "He 2015, table 3"),
    "resnet101_v1": (21.75, 6.05, "He 2015, table 3"),
    "resnet152_v1": (21.43, 5.71, "He 2015, table 3"),
    "vgg16": (28.07, 9.33, "He 2015, table 3, as quoted"),
    "googlenet": (None, 9.15, "He 2015, table 3, as quoted"),
}

# One crop of 224 by the authors' code, top-1 and top-5.
ONE_CROP: dict[str, tuple[float, float]] = {
    "resnet50_v1": (24.7, 7.8),
    "resnet101_v1": (23.6, 7.1),
    "resnet152_v1": (23.0, 6.7),
}

# One crop of 224 by fb.resnet.torch and by those who used it: top-1.
FB: dict[str, tuple[float, str]] = {
    "resnet18": (30.43, "fb.resnet.torch"),
    "resnet34": (26.73, "fb.resnet.torch"),
    "resnet50": (24.01, "fb.resnet.torch"),
    "resnet101": (22.44, "fb.resnet.torch"),
    "resnet152": (22.16, "fb.resnet.torch"),
    "preact_resnet200": (21.66, "fb.resnet.torch"),
    "resnext50_32x4d": (22.2, "Xie 2016, table 3"),
    "resnext101_32x4d": (21.2, "Xie 2016, table 3"),
    "resnext101_64x4d": (20.4, "Xie 2016, table 4"),
    "densenet121": (25.0, "Huang 2017, authors' code"),
    "densenet169": (23.6, "Huang 2017, authors' code"),
    "densenet201": (22.5, "Huang 2017, authors' code"),
    "densenet161": (22.2, "Huang 2017, authors' code"),
}

# Right of 50,000 with torchvision's weights IMAGENET1K_V1, in percent.
WEIGHTS: dict[str, float] = {
    "resnet18": 69.758,
    "resnet34": 73.314,
    "resnet50": 76.13,
    "resnet101": 77.374,
    "resnet152": 78.312,
}


def _error(
    network: str, top: int, error: float, protocol: str, source: str, ending: str, missing: str = ""
) -> Claim:
    top_said = "" if top == 1 else "-top5"
    return Claim(
        id=f"error-{network}-imagenet-{ending}{top_said}",
        statement=f"{network} reaches a top-{top} error of {error:g} % on ImageNet's validation "
        f"images ({PROTOCOLS[protocol].said.rpartition(';')[2].strip()})",
        kind="training",
        check="train",
        source=source,
        metric="validation error" if top == 1 else "validation top-5 error",
        value=round(error / 100, 6),
        unit="share",
        side="most",
        tolerance=TOLERANCE,
        network=network,
        data="imagenet",
        protocol=protocol,
        missing=missing,
    )


def _ten_crops() -> list[Claim]:
    return [
        _error(network, top, error, "ten-crop", source, "ten-crops", _TEN_CROP)
        for network, (first, fifth, source) in TEN_CROP.items()
        for top, error in ((1, first), (5, fifth))
        if error is not None
    ]


def _one_crop() -> list[Claim]:
    return [
        _error(
            network, top, error, "fb-resnet-torch", "KaimingHe/deep-residual-networks",
            "authors", _BY_HAND,
        )
        for network, errors in ONE_CROP.items()
        for top, error in zip((1, 5), errors)
    ]  # fmt: skip


def _single(
    ending: str, top: int, error: float, missing: str, said: str, place: str, split: str
) -> Claim:
    top_said = "" if top == 1 else "-top5"
    return Claim(
        id=f"error-resnet152_v1-imagenet-{ending}{top_said}",
        statement=f"{said} reaches a top-{top} error of {error:g} % on ImageNet's {split} images",
        kind="training",
        check="train",
        source=place,
        metric=f"{split} error" if top == 1 else f"{split} top-5 error",
        value=round(error / 100, 6),
        unit="share",
        side="most",
        tolerance=TOLERANCE,
        network="resnet152_v1",
        data="imagenet",
        protocol="ten-crop",
        missing=missing,
    )


_SCALES = "several scales of an image, fully convolutional"

IMAGENET_ERRORS: tuple[Claim, ...] = (
    *_ten_crops(),
    *_one_crop(),
    *(
        _error(network, 1, error, "fb-resnet-torch", source, "one-crop")
        for network, (error, source) in FB.items()
    ),
    _single("single", 1, 19.38, _SCALES, "One ResNet-152", "He 2015, table 4", "validation"),
    _single("single", 5, 4.49, _SCALES, "One ResNet-152", "He 2015, table 4", "validation"),
    _single(
        "ensemble", 5, 3.57, _ENSEMBLE, "An ensemble of six networks", "He 2015, table 5", "test"
    ),
    *(
        Claim(
            id=f"accuracy-{network}-imagenet-weights",
            statement=f"{network} with torchvision's weights IMAGENET1K_V1 gets {right:g} % of "
            "ImageNet's validation images right",
            kind="training",
            check="weights",
            source="torchvision, model documentation",
            metric="validation accuracy",
            value=round(right / 100, 6),
            unit="share",
            tolerance=0.001,
            network=network,
            data="imagenet",
            protocol="published-weights",
        )
        for network, right in WEIGHTS.items()
    ),
)
