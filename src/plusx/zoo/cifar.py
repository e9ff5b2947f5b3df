"""Networks for CIFAR: 32 x 32 pixels, 10 classes.

The depth is in the name: 6 n + 2 layers in basic blocks, 9 n + 2 in bottlenecks, with n blocks in
each of three stages, and 6 n + 4 in wide networks, whose authors count the three projections but
not the head.
"""

from plusx.grammar.model import External
from plusx.grammar.reversible import REVNET38, REVNET110
from plusx.grammar.spec import Block, Net, Stage
from plusx.zoo.blocks import (
    AXIAL_A,
    BASIC,
    BASIC_A,
    BASIC_C,
    BOTTLENECK,
    BOTTLENECK_ORDERS,
    BOTTLENECK_V1,
    BROAD,
    CHANGE,
    DENSE,
    DENSE_BC,
    FIRST_PREACT,
    FIRST_PREACT_A,
    FIRST_PREACT_ONE_LAYER_A,
    FIXUP_A,
    HIGHWAY,
    NARROW,
    ONE_LAYER_A,
    ORDERS,
    PLAIN,
    PREACT,
    PREACT_A,
    PREACT_BOTTLENECK_V1,
    PREACT_ONE_LAYER_A,
    REZERO_A,
    SHORTCUTS,
    SKIPINIT_A,
    VGG_BN,
    WIDE,
    attended,
    resnext,
    stages,
)
from plusx.zoo.entry import Entry


STEM = "conv3 norm act"
WIDTHS, BOTTLENECK_WIDTHS = (16, 32, 64), (64, 128, 256)


def net(
    block: Block,
    depth: int,
    widths: tuple[int, ...] = WIDTHS,
    *,
    first: Block | None = None,
    stem: str = STEM,
    stem_width: int = 16,
    tail: str = "pool",
    drop_path: float = 0.0,
) -> Net:
    """Section 4.2 of He 2015 with any block: a stem, and `depth` blocks in each of three stages."""
    return Net(
        stem=stem,
        stem_width=stem_width,
        stages=stages(block, (depth,) * 3, widths, strides=(1, 2, 2), first=first),
        tail=tail,
        num_classes=10,
        size=32,
        drop_path=drop_path,
    )


def preact(block: Block, depth: int, first: Block) -> Net:
    """The appendix of He 2016: the stem is activated once, before the paths split."""
    return net(block, depth, first=first, tail="norm act pool")


def preact_bottleneck(depth: int) -> Net:
    """He's code (resnet-1k-layers): a stem of one convolution, and the stride on the first 1x1."""
    block = PREACT_BOTTLENECK_V1
    return net(block, depth, BOTTLENECK_WIDTHS, stem="conv3", tail="norm act pool")


def fixup(depth: int) -> Net:
    """The authors' code of Zhang 2019b (hongyi-zhang/Fixup): numbers instead of norms."""
    return net(FIXUP_A, depth, stem="conv3 shift act", tail="pool shift")


def rezero(depth: int) -> Net:
    """ResNets of He 2015 without norms; every branch is multiplied by a number, initially 0."""
    return net(REZERO_A, depth, stem="conv3b act")


def skipinit(depth: int) -> Net:
    """Pre-activation networks without norms; every branch is multiplied by a number, initially
    0."""
    return net(SKIPINIT_A, depth, stem="conv3b", tail="act pool")


def wide(depth: int, factor: int, block: Block = WIDE) -> Net:
    """Table 1 of Zagoruyko 2016 with widths 16, 32 and 64 times `factor`."""
    widths = tuple(width * factor for width in WIDTHS)
    return net(block, depth, widths, stem="conv3", tail="norm act pool")


def resnext29(groups: int, ratio: str) -> Net:
    """Section 5.3 of Xie 2016: three blocks per stage, groups of 64 channels."""
    return net(resnext(groups, ratio), 3, (256, 512, 1024), stem_width=64)


def densenet(block: Block, depth: int, growth: int, stem_width: int, ratio: str) -> Net:
    """Section 3 of Huang 2017: three stages of `depth` blocks; `ratio` compresses between them."""
    enter = f"norm act conv1{ratio} avgpool2s2"
    return Net(
        stem="conv3",
        stem_width=stem_width,
        stages=stages(block, (depth,) * 3, (growth,) * 3, strides=(1,) * 3, enter=enter),
        tail="norm act pool",
        num_classes=10,
        size=32,
    )


def imagenet(block: Block, depths: tuple[int, ...], widths: tuple[int, ...]) -> Net:
    """A network for ImageNet with a stem that keeps the size of small images."""
    body = stages(block, depths, widths)
    return Net(stem=STEM, stem_width=64, stages=body, num_classes=10, size=32)


def highway() -> Net:
    """The 19 layers of the authors' code (flukeskywalker/highway-networks, cifar10-19layers).

    It has the 2,256,838 parameters that their training log prints. Their transform gates start at a
    bias of -2.
    """
    enter = "maxpool2s2 drop.2"
    return Net(
        stem="drop.2 conv3b act",
        stem_width=32,
        stages=(
            Stage(block=HIGHWAY, depth=4, width=32),
            Stage(block=HIGHWAY, first=CHANGE, depth=6, width=80, enter=enter),
            Stage(block=HIGHWAY, first=CHANGE, depth=6, width=128, enter=enter),
            Stage(block=Block(body="conv1b act"), depth=1, width=100),
        ),
        tail="pool drop.2",
        num_classes=10,
        size=32,
    )


def vgg() -> Net:
    """VGG-16 with batch norm and one linear layer."""
    strides, widths = (1,) * 5, (64, 128, 256, 512, 512)
    body = stages(VGG_BN, (2, 2, 3, 3, 3), widths, strides=strides, enter="maxpool2s2")
    return Net(stem="", stages=body, tail="maxpool2s2 pool", num_classes=10, size=32)


# Its convolutions have biases, and Keras pads asymmetrically at stride 2: not in the grammar.
RESNET8_KERAS = External(
    name="resnet8_keras",
    embed_width=64,
    parameters=78_186,
    multiply_adds=12_501_632,
    depth=8,
    in_channels=3,
    num_classes=10,
    size=32,
)
# The input of a unit is recomputed from its output, which the grammar cannot express. The counts
# published are in millions with two digits: 0.46 and 1.73.
REVNETS = {
    name: External(
        name=name,
        embed_width=reversible.widths[-1],
        parameters=parameters,
        multiply_adds=multiply_adds,
        depth=depth,
        in_channels=3,
        num_classes=10,
        size=32,
        reversible=reversible,
    )
    for name, reversible, depth, parameters, multiply_adds in (
        ("revnet38", REVNET38, 38, 464_890, 77_231_200),
        ("revnet110", REVNET110, 110, 1_729_194, 253_330_688),
    )
}

CIFAR: dict[str, Entry] = {
    # no ending: option A, the paper's choice for CIFAR
    "resnet20": Entry(net(BASIC_A, 3), "He 2015, table 6"),
    "resnet32": Entry(net(BASIC_A, 5), "He 2015, table 6"),
    "resnet44": Entry(net(BASIC_A, 7), "He 2015, table 6"),
    "resnet56": Entry(net(BASIC_A, 9), "He 2015, table 6"),
    "resnet110": Entry(net(BASIC_A, 18), "He 2015, table 6"),
    "resnet1202": Entry(net(BASIC_A, 200), "He 2015, table 6"),
    "resnet20_b": Entry(net(BASIC, 3), "He 2015, section 4.2, option B"),
    "resnet32_b": Entry(net(BASIC, 5), "He 2015, section 4.2, option B"),
    "resnet44_b": Entry(net(BASIC, 7), "He 2015, section 4.2, option B"),
    "resnet56_b": Entry(net(BASIC, 9), "He 2015, section 4.2, option B"),
    "resnet110_b": Entry(net(BASIC, 18), "He 2015, section 4.2, option B"),
    "resnet1202_b": Entry(net(BASIC, 200), "He 2015, section 4.2, option B"),
    "resnet20_c": Entry(net(BASIC_C, 3), "He 2015, section 4.2, option C"),
    "resnet32_c": Entry(net(BASIC_C, 5), "He 2015, section 4.2, option C"),
    "resnet44_c": Entry(net(BASIC_C, 7), "He 2015, section 4.2, option C"),
    "resnet56_c": Entry(net(BASIC_C, 9), "He 2015, section 4.2, option C"),
    "resnet110_c": Entry(net(BASIC_C, 18), "He 2015, section 4.2, option C"),
    "resnet1202_c": Entry(net(BASIC_C, 200), "He 2015, section 4.2, option C"),
    "plain20": Entry(net(PLAIN, 3), "He 2015, figure 6"),
    "plain32": Entry(net(PLAIN, 5), "He 2015, figure 6"),
    "plain44": Entry(net(PLAIN, 7), "He 2015, figure 6"),
    "plain56": Entry(net(PLAIN, 9), "He 2015, figure 6"),
    "plain110": Entry(net(PLAIN, 18), "He 2015, section 4.2"),
    "plain1202": Entry(net(PLAIN, 200), "He 2015, section 4.2, the twin of ResNet-1202"),
    "resnet110_sd": Entry(net(BASIC_A, 18, drop_path=0.5), "Huang 2016, section 4"),
    "resnet152_sd": Entry(net(BASIC_A, 25, drop_path=0.5), "Huang 2016, section 4, SVHN"),
    "resnet1202_sd": Entry(net(BASIC_A, 200, drop_path=0.5), "Huang 2016, section 4"),
    # the stride on the first 1x1, as in preact_resnet164
    "resnet164": Entry(net(BOTTLENECK_V1, 18, BOTTLENECK_WIDTHS), "He 2016, table 3"),
    "resnet1001": Entry(net(BOTTLENECK_V1, 111, BOTTLENECK_WIDTHS), "He 2016, table 3"),
    "resnet110_one_layer": Entry(net(ONE_LAYER_A, 36), "He 2016, table 3, skips over one layer"),
    "preact_resnet110_one_layer": Entry(
        preact(PREACT_ONE_LAYER_A, 36, FIRST_PREACT_ONE_LAYER_A),
        "He 2016, table 3, skips over one layer",
    ),
    "preact_resnet20": Entry(preact(PREACT_A, 3, FIRST_PREACT_A), "He 2016, appendix"),
    "preact_resnet56": Entry(preact(PREACT_A, 9, FIRST_PREACT_A), "He 2016, appendix"),
    "preact_resnet110": Entry(preact(PREACT_A, 18, FIRST_PREACT_A), "He 2016, table 2"),
    "preact_resnet20_b": Entry(preact(PREACT, 3, FIRST_PREACT), "He 2016, appendix, option B"),
    "preact_resnet56_b": Entry(preact(PREACT, 9, FIRST_PREACT), "He 2016, appendix, option B"),
    "preact_resnet110_b": Entry(preact(PREACT, 18, FIRST_PREACT), "He 2016, appendix, option B"),
    "preact_resnet164": Entry(preact_bottleneck(18), "He 2016, table 3"),
    "preact_resnet1001": Entry(preact_bottleneck(111), "He 2016, table 3"),
    # kinds of shortcut (table 1 of He 2016, ResNet-110)
    "resnet110_constant": Entry(net(SHORTCUTS["constant"], 18), "He 2016, table 1"),
    "resnet110_constant_shortcut": Entry(
        net(SHORTCUTS["constant_shortcut"], 18), "He 2016, table 1"
    ),
    "resnet110_exclusive_gate": Entry(net(SHORTCUTS["exclusive_gate"], 18), "He 2016, table 1"),
    "resnet110_shortcut_gate": Entry(net(SHORTCUTS["shortcut_gate"], 18), "He 2016, table 1"),
    "resnet110_conv_shortcut": Entry(net(SHORTCUTS["conv_shortcut"], 18), "He 2016, table 1"),
    "resnet110_dropout_shortcut": Entry(net(SHORTCUTS["dropout_shortcut"], 18), "He 2016, table 1"),
    # the order of norm and act (table 2 of He 2016); full pre-activation: preact_resnet110, 164
    "resnet110_norm_after": Entry(net(ORDERS["norm_after"], 18), "He 2016, table 2"),
    "resnet110_act_before": Entry(net(ORDERS["act_before"], 18), "He 2016, table 2"),
    "resnet110_act_only": Entry(net(ORDERS["act_only"], 18, tail="act pool"), "He 2016, table 2"),
    "resnet164_norm_after": Entry(
        net(BOTTLENECK_ORDERS["norm_after"], 18, BOTTLENECK_WIDTHS), "He 2016, table 2"
    ),
    "resnet164_act_before": Entry(
        net(BOTTLENECK_ORDERS["act_before"], 18, BOTTLENECK_WIDTHS), "He 2016, table 2"
    ),
    "resnet164_act_only": Entry(
        net(BOTTLENECK_ORDERS["act_only"], 18, BOTTLENECK_WIDTHS, tail="act pool"),
        "He 2016, table 2",
    ),
    # convolutions over all channels, where the paper has depthwise ones
    "axial_resnet20": Entry(net(AXIAL_A, 3), "Shahadat 2023, in ResNet-20"),
    "axial_resnet56": Entry(net(AXIAL_A, 9), "Shahadat 2023, in ResNet-56"),
    "axial_resnet110": Entry(net(AXIAL_A, 18), "Shahadat 2023, in ResNet-110"),
    # without norms
    "fixup_resnet20": Entry(fixup(3), "Zhang 2019b, section 4.1"),
    "fixup_resnet56": Entry(fixup(9), "Zhang 2019b, section 4.1"),
    "fixup_resnet110": Entry(fixup(18), "Zhang 2019b, section 4.1"),
    "rezero_resnet20": Entry(rezero(3), "Bachlechner 2020, section 5"),
    "rezero_resnet56": Entry(rezero(9), "Bachlechner 2020, section 5"),
    "rezero_resnet110": Entry(rezero(18), "Bachlechner 2020, section 5"),
    "skipinit_resnet20": Entry(skipinit(3), "De 2020, section 4"),
    "skipinit_resnet56": Entry(skipinit(9), "De 2020, section 4"),
    "skipinit_resnet110": Entry(skipinit(18), "De 2020, section 4"),
    # with dropout between the convolutions; _nodrop are the networks of most published results
    "wrn16_4": Entry(wide(2, 4), "Zagoruyko 2016, table 1, dropout of section 2.4", depth=16),
    "wrn16_8": Entry(wide(2, 8), "Zagoruyko 2016, table 1, dropout of section 2.4", depth=16),
    "wrn28_10": Entry(wide(4, 10), "Zagoruyko 2016, table 1, dropout of section 2.4", depth=28),
    "wrn40_4": Entry(wide(6, 4), "Zagoruyko 2016, table 1, dropout of section 2.4", depth=40),
    "wrn40_10": Entry(wide(6, 10), "Zagoruyko 2016, table 1, dropout of section 2.4", depth=40),
    "wrn16_4_nodrop": Entry(wide(2, 4, PREACT), "Zagoruyko 2016, table 1", depth=16),
    "wrn16_8_nodrop": Entry(wide(2, 8, PREACT), "Zagoruyko 2016, table 1", depth=16),
    "wrn28_10_nodrop": Entry(wide(4, 10, PREACT), "Zagoruyko 2016, table 1", depth=28),
    "wrn40_4_nodrop": Entry(wide(6, 4, PREACT), "Zagoruyko 2016, table 1", depth=40),
    "resnext29_4x64d": Entry(resnext29(4, ""), "Xie 2016, section 5.3"),
    "resnext29_8x64d": Entry(resnext29(8, "*2"), "Xie 2016, table 7"),
    "resnext29_16x64d": Entry(resnext29(16, "*4"), "Xie 2016, table 7"),
    "densenet40_12": Entry(densenet(DENSE, 12, 12, 16, ""), "Huang 2017, table 2"),
    "densenet100_12": Entry(densenet(DENSE, 32, 12, 16, ""), "Huang 2017, table 2"),
    "densenet100_24": Entry(densenet(DENSE, 32, 24, 16, ""), "Huang 2017, table 2"),
    "densenet_bc100_12": Entry(densenet(DENSE_BC, 16, 12, 24, "/2"), "Huang 2017, table 2"),
    "densenet_bc250_24": Entry(densenet(DENSE_BC, 41, 24, 48, "/2"), "Huang 2017, table 2"),
    "densenet_bc190_40": Entry(densenet(DENSE_BC, 31, 40, 80, "/2"), "Huang 2017, table 2"),
    # the gates in ResNet-20, option A; se/16 leaves one hidden unit at 16 channels
    "se_resnet20": Entry(net(attended(BASIC_A, "se/16"), 3), "Hu 2017, in ResNet-20"),
    "eca_resnet20": Entry(net(attended(BASIC_A, "eca"), 3), "Wang 2019, in ResNet-20"),
    "cbam_resnet20": Entry(net(attended(BASIC_A, "cbam/16"), 3), "Woo 2018, in ResNet-20"),
    "highway19": Entry(highway(), "Srivastava 2015, table 1, authors' code"),
    "vgg16_cifar": Entry(vgg(), "Simonyan 2014, table 1, D, one linear layer"),
    "resnet18_cifar": Entry(imagenet(BASIC, (2, 2, 2, 2), NARROW), "He 2015, table 1, small stem"),
    "resnet34_cifar": Entry(imagenet(BASIC, (3, 4, 6, 3), NARROW), "He 2015, table 1, small stem"),
    "resnet50_cifar": Entry(
        imagenet(BOTTLENECK, (3, 4, 6, 3), BROAD), "He 2015, table 1, small stem"
    ),
    "resnet101_cifar": Entry(
        imagenet(BOTTLENECK, (3, 4, 23, 3), BROAD), "He 2015, table 1, small stem"
    ),
    "resnet152_cifar": Entry(
        imagenet(BOTTLENECK, (3, 8, 36, 3), BROAD), "He 2015, table 1, small stem"
    ),
    "resnet8_keras": Entry(RESNET8_KERAS, "Banbury 2021, image classification"),
    "revnet38": Entry(REVNETS["revnet38"], "Gomez 2017, table 2"),
    "revnet110": Entry(REVNETS["revnet110"], "Gomez 2017, table 2"),
}
