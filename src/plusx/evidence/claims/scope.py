"""What the four texts claim of residual networks, a row each, and what plusx runs for it.

A row is made of other claims (`runs`), or says what plusx has not got yet to run it (`missing`).
"""

from typing import Literal, NamedTuple

from plusx.evidence.claims.claim import Claim


class Row(NamedTuple):
    """A row: what is claimed, in which texts, and what is run for it."""

    id: str
    texts: str
    statement: str
    runs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    missing: str = ""


ROWS: tuple[Row, ...] = (
    Row(
        "a1", "0 1 2 3",
        "A residual block computes F(x) + x, with an identity or a projection as its shortcut",
        ("zero-residual-identity", "option-a-zeros", "option-b-minus-a"),
    ),
    Row(
        "a2", "0 1 2 3",
        "ResNets have 18 to 152 layers; from 50 on a block is 1 x 1, 3 x 3, 1 x 1",
        (
            *(f"parameters-resnet{depth}" for depth in (18, 34, 50, 101, 152)),
            "multiply-adds-resnet50*",
        ),
        ("plusx reproduce erratum-17",),
    ),
    Row(
        "a3", "1 3", "ResNets for CIFAR have 110 layers, and can be built with a thousand",
        ("parameters-resnet110", "parameters-resnet1202", "parameters-preact_resnet1001"),
        ("plusx study thousand",),
    ),
    Row(
        "a4", "0 1 3", "A plain network of the same depth stands beside every residual one",
        ("plain-twin-counts",),
    ),
    Row(
        "a5", "0", "With norm and activation before the weights the identity reaches every block",
        ("preactivation-unrolling", "gradient-identity", "gradient-equal-at-every-depth"),
        ("plusx study ablation",),
    ),
    Row("a6", "0 1", "Wide residual networks", ("parameters-w*",),
        ("plusx reproduce erratum-10",)),
    Row("a7", "1", "ResNeXt adds cardinality", ("parameters-resnext*",),
        ("plusx reproduce erratum-11",)),
    Row("a8", "0 1", "DenseNet concatenates where ResNet adds", ("parameters-densenet*",)),
    Row(
        "a9", "1 3", "AlexNet, VGG and GoogLeNet are what residual networks are compared with",
        ("parameters-vgg*", "parameters-alexnet", "parameters-googlenet*"),
    ),
    Row(
        "a10", "0 1", "Dropout and stochastic depth act against overfitting",
        ("stochastic-depth-*",),
        ("plusx study generalisation",),
    ),
    Row(
        "a11", "0 1 3", "Attention is put into residual networks",
        ("parameters-se_*", "parameters-eca_*", "parameters-cbam_*", "parameters-botnet50"),
    ),
    Row(
        "b1", "0 1 2 3",
        "Deeper plain networks have a higher training error, residual networks have not",
        ("degradation-plain-digits", "degradation-residual-digits"),
        ("plusx study degradation", "plusx reproduce 'degradation-*-cifar10'"),
    ),
    Row(
        "b2", "0 1 2 3", "Skips keep gradients from vanishing and exploding",
        ("gradient-identity", "gradient-scaled-shortcut"),
        ("plusx study gradients", "plusx reproduce erratum-12"),
    ),
    Row(
        "b3", "0 1 2 3", "Residual networks converge faster and are easier to optimise",
        ("convergence-digits", "zero-residual-identity"),
        ("plusx study convergence", "plusx study surface", "plusx study responses"),
    ),
    Row(
        "b4", "0 1 2 3", "Residual networks generalise better, also from few images",
        ("generalisation-digits", "generalisation-digits-tenth"),
        ("plusx study generalisation",),
    ),
    Row(
        "b5", "1",
        "Tables of accuracy, precision, recall and F1, of epochs and times, of sizes and errors",
        ("balanced-recall", "macro-f1"),
        ("plusx reproduce 'erratum-[4-8]'",),
    ),
    Row(
        "b6", "0 1 3", "ResNet needs less than VGG-16; the bottleneck saves computation",
        ("resnet34-cheaper-than-vgg16", "bottleneck-cheaper"),
        ("plusx study skips",),
    ),
    Row(
        "b7", "1", "Grad-CAM shows what a residual network looks at",
        ("grad-cam-identity",),
        ("plusx explain RUN PATH...",),
    ),
    Row(
        "c1", "0 1 2 3", "Residual networks classify the images of CIFAR and ImageNet",
        ("error-resnet20-cifar10",),
        ("plusx reproduce 'error-*'",),
    ),
    Row("c2", "1", "Features carry over to other tasks by fine-tuning",
        missing="a linear probe, and batch norm that stays frozen"),
    Row("c3", "0 1 2 3", "Detectors stand on residual backbones",
        missing="detection: heads, boxes and mean average precision"),
    Row("c4", "0 1 2", "Segmentation and Mask R-CNN stand on residual backbones",
        missing="segmentation"),
    Row("c5", "0 1 2 3", "Residual networks read X-rays, scans and retinas",
        missing="volumes and masks as data, and the Dice score"),
    Row("c6", "1 2 3", "Residual networks recognise faces",
        missing="embeddings trained with triplets or margins, and verification"),
    Row("c7", "0 1 2 3", "Residual networks see for cars",
        missing="segmentation of driving scenes, boxes and lanes"),
    Row("c8", "3", "Residual networks classify satellite images",
        missing="images of more than three channels as data"),
    Row("d1", "0 3", "Residual networks classify text", missing="text as data"),
    Row("d2", "0", "Residual networks translate and caption",
        missing="sequence-to-sequence networks and the BLEU score"),
    Row("d3", "0 3", "Residual networks recognise speech",
        missing="sound as data, the CTC loss and word error rates"),
    Row("d4", "0", "Residual networks spot spoken commands", missing="sound as data"),
    Row("e1", "0", "Networks forget what they learnt before",
        missing="continual learning: replay, EWC, LwF and iCaRL"),
    Row("e2", "0", "Networks are fooled by small changes of their input",
        missing="attacks (FGSM, PGD) and adversarial training"),
    Row("e3", "3", "Residual networks learn without labels",
        missing="self-supervised losses, the linear probe and nearest neighbours"),
    Row("e4", "0 1 3", "Deep networks are costly, and slow where answers are needed at once",
        missing="export to ONNX and eight bits"),
    Row("e5", "0", "Training stores the activations of every layer",
        missing="activation memory as measured, and plans that trade it for time"),
    Row("e6", "1", "Hyper-parameters have to be tuned", missing="the search over a recipe"),
)  # fmt: skip


def _difference(
    name: str,
    statement: str,
    metric: str,
    network: str,
    against: str,
    data: str,
    side: Literal["most", "least"],
    value: float,
    source: str,
    protocol: str,
    overrides: tuple[str, ...] = (),
) -> Claim:
    """A claim that one trained network is above or below another, seed by seed."""
    return Claim(
        id=name,
        statement=statement,
        kind="training",
        check="train",
        source=source,
        metric=f"{metric} of {network} less that of {against}",
        value=value,
        unit="number" if metric.startswith("epochs") else "share",
        side=side,
        network=network,
        against=against,
        data=data,
        protocol=protocol,
        overrides=overrides,
    )  # fmt: skip


_B1, _B3, _B4 = "texts 0 to 3, row B1", "texts 0 to 3, row B3", "texts 0 to 3, row B4"

PAIRS: tuple[Claim, ...] = (
    *(
        _difference(
            f"degradation-plain-{data}",
            f"plain56 has a higher training error than plain20 on {data}, by half a point or more",
            "train error", "plain56", "plain20", data, "least", 0.005,
            "He 2015, figure 1; " + _B1, protocol,
        )
        for data, protocol in (("digits", "digits"), ("cifar10", "he2015"))
    ),
    *(
        _difference(
            f"degradation-residual-{data}",
            f"resnet56 has no higher training error than resnet20 on {data}, within half a point",
            "train error", "resnet56", "resnet20", data, "most", 0.005,
            "He 2015, figure 6; " + _B1, protocol,
        )
        for data, protocol in (("digits", "digits"), ("cifar10", "he2015"))
    ),
    _difference(
        "convergence-digits",
        "resnet20 needs no more epochs than plain20 to 90 % of the validation digits",
        "epochs to 90 %", "resnet20", "plain20", "digits", "most", 0.0, _B3, "digits",
    ),
    _difference(
        "generalisation-digits",
        "resnet20 has no larger gap between training and validation error than plain20 on digits, "
        "within half a point",
        "gap", "resnet20", "plain20", "digits", "most", 0.005, _B4, "digits",
    ),
    _difference(
        "generalisation-digits-tenth",
        "trained on a tenth of the digits, resnet20 has no higher error than plain20",
        "validation error", "resnet20", "plain20", "digits", "most", 0.0, _B4, "digits",
        ("data.train=0.1",),
    ),
)  # fmt: skip

COMPARED: tuple[Claim, ...] = (
    Claim(
        id="resnet34-cheaper-than-vgg16",
        statement="A ResNet of 34 layers takes fewer multiply-adds than VGG-16 of 16",
        kind="arithmetic",
        check="multiply-adds-difference",
        source="He 2015, section 3.3; texts 0, 1 and 3, row B6",
        metric="multiply-adds of resnet34 less those of vgg16",
        value=0,
        side="most",
        network="resnet34",
        against="vgg16",
    ),
    Claim(
        id="bottleneck-cheaper",
        statement="A bottleneck of 256 channels takes no more multiply-adds than a basic block of "
        "64, and far fewer than a basic block of 256",
        kind="arithmetic",
        check="bottleneck",
        source="He 2015, figure 5; texts 0 and 1, row B6",
        metric="multiply-adds of the bottleneck over those of the basic block of 64",
        value=1.0,
        unit="number",
        side="most",
    ),
)


_TRAINED = {"error-resnet20-cifar10", *(claim.id for claim in PAIRS)}


def _row(row: Row) -> Claim:
    return Claim(
        id=f"scope-{row.id}",
        statement=row.statement,
        kind="training" if set(row.runs) & _TRAINED else "property",
        check="members",
        source=f"text{'s' if len(row.texts) > 1 else ''} {row.texts.replace(' ', ', ')}, "
        f"row {row.id.upper()}",
        metric="claims behind it that miss",
        value=0,
        runs=row.runs,
        commands=row.commands,
        missing=row.missing,
    )


SCOPE: tuple[Claim, ...] = (*PAIRS, *COMPARED, *(_row(row) for row in ROWS))
