"""Errors on CIFAR as the papers print them, in percent, each with the way it was trained."""

from typing import NamedTuple

from plusx.evidence.claims.claim import Claim
from plusx.evidence.claims.protocols import PROTOCOLS


# What the mean of three seeds may be above a paper's figure: independent reproductions of the
# small networks lie within it, and six runs of one network by one user spanned 1.5 points.
TOLERANCE = 0.003


class Row(NamedTuple):
    """A published error in percent; `spread` is the deviation over the paper's own runs."""

    network: str
    data: str
    protocol: str
    error: float
    source: str
    spread: float | None = None
    ending: str = ""  # of the id, where a network has several
    overrides: tuple[str, ...] = ()
    others: tuple[tuple[str, float], ...] = ()
    at_least: bool = False  # the paper says only that it is above this
    missing: str = ""


_T6, _C2 = "He 2015, table 6", "He 2016, table 2"
_C1, _C3 = "He 2016, table 1, ResNet-110", "He 2016, table 3"
_C4 = "He 2016, table 4"  # means and deviations; table 3 has the medians
_ONE_RUN = "an independent reproduction, one run; He 2015, figure 6 shows the curves only"
_DENSE = "Huang 2017, table 2, authors' code"
_WIDE, _WIDE_DROP = "Zagoruyko 2016, median of 5", "Zagoruyko 2016, authors' code"
_MM = "MMPretrain, configs/resnet"
_NEXT = "Xie 2016, table 7, mean of 10"
_FAIL = 20.0  # the paper's mark "fail" stands for an error above it

# What others came to: gcr, hysts and sjmikler are the repositories' owners.
ROWS: tuple[Row, ...] = (
    Row("resnet20", "cifar10", "he2015", 8.75, _T6, others=(("gcr", 8.29), ("sjmikler", 7.99))),
    Row("resnet32", "cifar10", "he2015", 7.51, _T6, others=(("gcr", 7.63), ("sjmikler", 7.40))),
    Row("resnet44", "cifar10", "he2015", 7.17, _T6, others=(("gcr", 7.14), ("sjmikler", 6.83))),
    Row("resnet56", "cifar10", "he2015", 6.97, _T6, others=(("gcr", 6.94), ("sjmikler", 6.23))),
    Row(
        "resnet110", "cifar10", "he2015-warm", 6.61, f"{_T6}, mean of 5", 0.16,
        others=(("gcr", 6.73), ("hysts", 6.52), ("sjmikler", 6.26)),
    ),
    Row("resnet110", "cifar10", "he2015-warm", 6.43, f"{_T6}, best of 5", 0.16, "best"),
    Row("resnet1202", "cifar10", "he2015-warm", 7.93, _T6),
    Row("plain20", "cifar10", "he2015", 9.63, _ONE_RUN),
    Row("plain32", "cifar10", "he2015", 9.92, _ONE_RUN),
    Row("plain44", "cifar10", "he2015", 10.36, _ONE_RUN),
    Row("plain56", "cifar10", "he2015", 14.22, _ONE_RUN),
    Row("plain110", "cifar10", "he2015", 60.0, "He 2015, figure 6, caption", at_least=True),
    Row(
        "highway19", "cifar10", "he2015", 7.72, f"{_T6}, as quoted, mean", 0.16,
        missing="the schedule of the authors of highway networks as a protocol",
    ),
    Row("resnet164", "cifar10", "he2015-warm", 5.93, f"{_C3}, median of 5"),
    Row("resnet164", "cifar100", "he2015-warm", 25.16, f"{_C3}, median of 5"),
    Row(
        "preact_resnet110", "cifar10", "he2015-warm", 6.37, f"{_C3}, median of 5",
        others=(("hysts", 6.47),),
    ),
    Row(
        "preact_resnet164", "cifar10", "he2015-warm", 5.46, f"{_C3}, median of 5",
        others=(("hysts", 5.90),),
    ),
    Row("preact_resnet164", "cifar100", "he2015-warm", 24.33, f"{_C3}, median of 5"),
    Row("preact_resnet1001", "cifar10", "he2015-warm", 4.89, f"{_C4}, mean of 5", 0.14),
    Row(
        "preact_resnet1001", "cifar10", "he2016-small-batch", 4.69,
        f"{_C4}, batch 64, mean of 5", 0.20, "batch64",
    ),
    Row("preact_resnet1001", "cifar100", "he2015-warm", 22.68, f"{_C4}, mean of 5", 0.22),
    Row(
        "resnet1001", "cifar10", "he2015-warm", 7.61, f"{_C3}, median of 5",
        missing="ResNet-1001 with the activation behind the sum, as a network of the zoo",
    ),
    Row(
        "resnet1001", "cifar100", "he2015-warm", 27.82, f"{_C3}, median of 5",
        missing="ResNet-1001 with the activation behind the sum, as a network of the zoo",
    ),
    Row(
        "resnet110", "cifar10", "he2015-warm", 9.90, f"{_C3}, skips over one layer", None,
        "one-layer", missing="networks whose skips span one layer",
    ),
    Row(
        "preact_resnet110", "cifar10", "he2015-warm", 8.91, f"{_C3}, skips over one layer", None,
        "one-layer", missing="pre-activation networks whose skips span one layer",
    ),
    # where norm and activation stand; the original is resnet110 and resnet164, full
    # pre-activation is preact_resnet110 and 164
    Row("resnet110_norm_after", "cifar10", "he2015-warm", 8.17, _C2),
    Row("resnet164_norm_after", "cifar10", "he2015-warm", 6.50, _C2),
    Row("resnet110_act_before", "cifar10", "he2015-warm", 7.84, _C2),
    Row("resnet164_act_before", "cifar10", "he2015-warm", 6.14, _C2),
    Row("resnet110_act_only", "cifar10", "he2015-warm", 6.71, _C2),
    Row("resnet164_act_only", "cifar10", "he2015-warm", 5.91, _C2),
    # what the shortcut says
    Row("resnet110_constant", "cifar10", "he2015-warm", 12.35, f"{_C1}, 0.5 and 0.5"),
    Row(
        "resnet110_constant_shortcut", "cifar10", "he2015-warm", _FAIL, f"{_C1}, 0.5 and 1",
        at_least=True,
    ),
    Row(
        "resnet110_exclusive_gate", "cifar10", "he2015-warm", 8.70, f"{_C1}, bias -6", None,
        "bias6", ("init.gate_bias=-6.0",),
    ),
    Row(
        "resnet110_exclusive_gate", "cifar10", "he2015-warm", 9.81, f"{_C1}, bias -7", None,
        "bias7", ("init.gate_bias=-7.0",),
    ),
    Row(
        "resnet110_exclusive_gate", "cifar10", "he2015-warm", _FAIL, f"{_C1}, bias 0 to -5", None,
        "bias0", ("init.gate_bias=0.0",), at_least=True,
    ),
    Row(
        "resnet110_shortcut_gate", "cifar10", "he2015-warm", 12.86, f"{_C1}, bias 0", None,
        "bias0", ("init.gate_bias=0.0",),
    ),
    Row(
        "resnet110_shortcut_gate", "cifar10", "he2015-warm", 6.91, f"{_C1}, bias -6", None,
        "bias6", ("init.gate_bias=-6.0",),
    ),
    Row("resnet110_conv_shortcut", "cifar10", "he2015-warm", 12.22, _C1),
    Row(
        "resnet110_dropout_shortcut", "cifar10", "he2015-warm", _FAIL, f"{_C1}, 0.5", at_least=True
    ),
    Row("wrn16_4_nodrop", "cifar10", "zagoruyko2016", 5.02, _WIDE),
    Row("wrn40_4_nodrop", "cifar10", "zagoruyko2016", 4.53, _WIDE),
    Row("wrn16_8_nodrop", "cifar10", "zagoruyko2016", 4.27, _WIDE),
    Row("wrn28_10_nodrop", "cifar10", "zagoruyko2016", 4.00, _WIDE, others=(("hysts", 4.03),)),
    Row("wrn28_10_nodrop", "cifar100", "zagoruyko2016", 19.25, _WIDE),
    Row("wrn28_10", "cifar10", "zagoruyko2016", 3.89, f"{_WIDE_DROP}, dropout 0.3"),
    Row("wrn28_10", "cifar100", "zagoruyko2016", 18.85, f"{_WIDE_DROP}, dropout 0.3"),
    Row("wrn40_10", "cifar10", "zagoruyko2016", 3.8, f"{_WIDE_DROP}, dropout, one run"),
    Row("wrn40_10", "cifar100", "zagoruyko2016", 18.3, f"{_WIDE_DROP}, dropout, one run"),
    Row("resnext29_8x64d", "cifar10", "xie2016", 3.65, _NEXT, others=(("hysts", 3.97),)),
    Row("resnext29_8x64d", "cifar100", "xie2016", 17.77, _NEXT),
    Row("resnext29_16x64d", "cifar10", "xie2016", 3.58, _NEXT),
    Row("resnext29_16x64d", "cifar100", "xie2016", 17.31, _NEXT),
    Row("densenet40_12", "cifar10", "huang2017", 5.24, _DENSE),
    Row("densenet40_12", "cifar100", "huang2017", 24.42, _DENSE),
    Row("densenet100_12", "cifar10", "huang2017", 4.10, _DENSE),
    Row("densenet100_12", "cifar100", "huang2017", 20.20, _DENSE),
    Row("densenet100_24", "cifar10", "huang2017", 3.74, _DENSE),
    Row("densenet100_24", "cifar100", "huang2017", 19.25, _DENSE),
    Row("densenet_bc100_12", "cifar10", "huang2017", 4.51, _DENSE, others=(("hysts", 4.69),)),
    Row("densenet_bc100_12", "cifar100", "huang2017", 22.27, _DENSE),
    Row("densenet_bc250_24", "cifar10", "huang2017", 3.62, _DENSE),
    Row("densenet_bc250_24", "cifar100", "huang2017", 17.60, _DENSE),
    Row("densenet_bc190_40", "cifar10", "huang2017", 3.46, _DENSE),
    Row("densenet_bc190_40", "cifar100", "huang2017", 17.18, _DENSE),
    Row("resnet110_sd", "cifar10", "huang2016", 5.25, "Huang 2016, authors' code"),
    Row(
        "resnet110", "cifar10", "huang2016", 6.41, "Huang 2016, authors' code, p = 1", None,
        "constant-depth",
    ),
    Row(
        "resnet110_sd", "svhn", "huang2016", 1.75, "Huang 2016, authors' code",
        missing="the images of SVHN",
    ),
    Row(
        "resnet1202_sd", "cifar10", "huang2016", 4.91, "Huang 2016, abstract",
        missing="ResNet-1202 with stochastic depth as a network of the zoo",
    ),
    Row("vgg16_cifar", "cifar10", "kuangliu", 7.36, "kuangliu/pytorch-cifar, VGG16"),
    Row(
        "vgg16_cifar", "cifar10", "kuangliu", 6.49, "as quoted by sjmikler/resnets", None, "quoted",
        missing="the protocol behind a quoted figure whose source names none",
    ),
    Row("resnet18_cifar", "cifar10", "mmpretrain", 5.18, _MM),
    Row("resnet34_cifar", "cifar10", "mmpretrain", 4.66, _MM),
    Row("resnet50_cifar", "cifar10", "mmpretrain", 4.45, _MM),
    Row("resnet101_cifar", "cifar10", "mmpretrain", 4.42, _MM),
    Row("resnet152_cifar", "cifar10", "mmpretrain", 4.24, _MM),
    Row("resnet50_cifar", "cifar100", "mmpretrain-cifar100", 20.10, _MM),
)  # fmt: skip


def _claim(row: Row) -> Claim:
    ending = f"-{row.ending}" if row.ending else ""
    said = "an error above" if row.at_least else "an error of"
    known = row.network not in ("resnet1001", "resnet1202_sd")
    return Claim(
        id=f"error-{row.network}-{row.data}{ending}",
        statement=f"{row.network} reaches {said} {row.error:g} % on {row.data}",
        kind="training",
        check="train",
        source=row.source,
        metric=f"{PROTOCOLS[row.protocol].split} error",
        value=round(row.error / 100, 6),
        unit="share",
        side="least" if row.at_least else "most",
        tolerance=0.0 if row.at_least else TOLERANCE,
        spread=None if row.spread is None else round(row.spread / 100, 6),
        network=row.network if known else "",
        data=row.data,
        protocol=row.protocol,
        overrides=row.overrides,
        others=tuple((who, round(error / 100, 6)) for who, error in row.others),
        missing=row.missing,
    )


CIFAR_ERRORS: tuple[Claim, ...] = (
    *(_claim(row) for row in ROWS),
    Claim(
        id="train-error-resnet1202-cifar10",
        statement="ResNet-1202 fits its training images to below 0.1 %",
        kind="training",
        check="train",
        source="He 2015, section 4.2",
        metric="train error",
        value=0.001,
        unit="share",
        side="most",
        network="resnet1202",
        data="cifar10",
        protocol="he2015-warm",
    ),
)
