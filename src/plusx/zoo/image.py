"""Networks for ImageNet: 224 x 224 pixels, 1,000 classes, unless stated otherwise."""

from dataclasses import replace

from plusx.grammar.model import External
from plusx.grammar.spec import Block, Net, Stage, Stride
from plusx.zoo.blocks import (
    ATTEND,
    BASIC,
    BASIC_A,
    BASIC_C,
    BOTNET,
    BOTTLENECK,
    BOTTLENECK_A,
    BOTTLENECK_BLUR,
    BOTTLENECK_D,
    BOTTLENECK_V1,
    BOTTLENECK_WIDE,
    BROAD,
    CONVNEXT,
    DARKNET,
    DENSE_BC,
    IMPROVED_END,
    IMPROVED_MIDDLE,
    IMPROVED_SECOND,
    IMPROVED_START,
    NARROW,
    NONLOCAL,
    PERCEIVE,
    PLAIN,
    PREACT,
    PREACT_BOTTLENECK,
    VGG,
    VGG_BN,
    attended,
    resnext,
    stages,
)
from plusx.zoo.entry import Entry


STEM = "conv7s2 norm act maxpool3s2"
PREACT_STEM = "conv7s2 maxpool3s2"
BLUR_STEM = "conv7s2 norm act maxpool3 blur3s2"
DEEP_STEM = "conv3/2s2 norm act conv3/2 norm act conv3 norm act maxpool3s2"
D18, D34, D50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)
D101, D152, D200 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)


def resnet(block: Block, depths: tuple[int, ...], widths: tuple[int, ...], stem: str = STEM) -> Net:
    """Table 1 of He 2015 with another block, or another stem."""
    return Net(stem=stem, stem_width=64, stages=stages(block, depths, widths))


def preact(block: Block, depths: tuple[int, ...], widths: tuple[int, ...]) -> Net:
    """Pre-activation as in timm: a stem of one convolution and pooling, and complete blocks.

    fb.resnet.torch ends the stem in `norm act` and starts with a block without them: another
    function with the same count (25,549,352 for 50 layers). Both together would have 128 more.
    """
    stem = PREACT_STEM
    return replace(resnet(block, depths, widths, stem), tail="norm act pool")


def improved(depths: tuple[int, ...]) -> Net:
    """The code of Duta 2020, iduta/iresnet: the stem does not pool, every stage halves the size."""
    body = tuple(
        Stage(
            block=(
                IMPROVED_START,
                IMPROVED_SECOND,
                *(IMPROVED_MIDDLE,) * (depth - 3),
                IMPROVED_END,
            ),
            depth=1,
            width=width,
            stride=2,
        )
        for depth, width in zip(depths, BROAD)
    )
    return Net(stem="conv7s2 norm act", stem_width=64, stages=body)


def densenet(depths: tuple[int, ...], growth: int, stem_width: int) -> Net:
    """Table 1 of Huang 2017: bottlenecks of 4 times the growth, transitions that halve."""
    enter = "norm act conv1/2 avgpool2s2"
    body = stages(DENSE_BC, depths, (growth,) * 4, strides=(1,) * 4, enter=enter)
    return Net(stem=STEM, stem_width=stem_width, stages=body, tail="norm act pool")


def vgg(block: Block, depths: tuple[int, ...]) -> Net:
    """A column of table 1 of Simonyan 2014."""
    strides: tuple[Stride, ...] = (1,) * 5
    body = stages(block, depths, (64, 128, 256, 512, 512), strides=strides, enter="maxpool2s2")
    tail = "maxpool2s2 pool7 fc4096 act drop.5 fc4096 act drop.5"
    return Net(stem="", stages=body, tail=tail)


def convnext(depths: tuple[int, ...], widths: tuple[int, ...]) -> Net:
    """Table 9 of Liu 2022; the learned scales are initialised to 1e-6."""
    enter = "norm conv2*2s2b"
    body = stages(CONVNEXT, depths, widths, strides=(1,) * 4, enter=enter)
    return Net(
        stem="conv4s4b norm",
        stem_width=widths[0],
        stages=body,
        tail="pool norm",
        norm="layer",
        act="gelu",
    )


def vision_transformer(width: int, depth: int) -> Net:
    """Table 1 of Dosovitskiy 2020 with the mean over positions instead of a class token."""
    stage = Stage(block=(ATTEND, PERCEIVE), depth=depth, width=width)
    return Net(
        stem="conv16s16b pos",
        stem_width=width,
        stages=(stage,),
        tail="norm pool",
        norm="layer",
        act="gelu",
    )


def darknet(depths: tuple[int, ...], widths: tuple[int, ...]) -> Net:
    """Table 1 of Redmon 2018: each stage starts with a convolution that halves the image."""
    body = tuple(
        Stage(block=DARKNET, depth=depth, width=width, enter="conv3*2s2 norm act")
        for depth, width in zip(depths, widths)
    )
    return Net(stem="conv3 norm act", stem_width=32, stages=body, size=256, act="leaky")


def with_nonlocal(net: Net) -> Net:
    """One non-local block before the last block of the third stage (Wang 2017, section 4.1)."""
    first, second, third, fourth = net.stages
    blocks = (*third.blocks[:-1], NONLOCAL, third.blocks[-1])
    return replace(net, stages=(first, second, replace(third, block=blocks, depth=1), fourth))


RESNET50 = resnet(BOTTLENECK, D50, BROAD)
BOTNET_STAGE = Stage(block=BOTNET, depth=3, width=2048, stride=2)
BOTNET50 = replace(RESNET50, stages=(*RESNET50.stages[:-1], BOTNET_STAGE))
DENSENET121 = densenet((6, 12, 24, 16), 32, 64)
ALEXNET = External(
    name="alexnet",
    embed_width=4096,
    parameters=61_100_840,
    multiply_adds=714_188_480,
    depth=8,
    in_channels=3,
    num_classes=1000,
    size=224,
)
GOOGLENET = External(
    name="googlenet",
    embed_width=1024,
    parameters=6_624_904,
    multiply_adds=1_498_376_192,
    depth=22,
    in_channels=3,
    num_classes=1000,
    size=224,
)

IMAGE: dict[str, Entry] = {
    # v1.5: the 3x3 of a bottleneck takes the stride (torchvision, fb.resnet.torch)
    "resnet18": Entry(resnet(BASIC, D18, NARROW), "He 2015, table 1"),
    "resnet34": Entry(resnet(BASIC, D34, NARROW), "He 2015, table 1"),
    "resnet50": Entry(RESNET50, "He 2015, table 1, v1.5"),
    "resnet101": Entry(resnet(BOTTLENECK, D101, BROAD), "He 2015, table 1, v1.5"),
    "resnet152": Entry(resnet(BOTTLENECK, D152, BROAD), "He 2015, table 1, v1.5"),
    # v1: the first 1x1 takes it, as in the paper
    "resnet50_v1": Entry(resnet(BOTTLENECK_V1, D50, BROAD), "He 2015, table 1"),
    "resnet101_v1": Entry(resnet(BOTTLENECK_V1, D101, BROAD), "He 2015, table 1"),
    "resnet152_v1": Entry(resnet(BOTTLENECK_V1, D152, BROAD), "He 2015, table 1"),
    # the shortcuts A and C; no ending means B
    "resnet34_a": Entry(resnet(BASIC_A, D34, NARROW), "He 2015, table 3, A"),
    "resnet34_c": Entry(resnet(BASIC_C, D34, NARROW), "He 2015, table 3, C"),
    "resnet50_a": Entry(resnet(BOTTLENECK_A, D50, BROAD), "He 2015, section 4.1, A"),
    "resnet101_a": Entry(resnet(BOTTLENECK_A, D101, BROAD), "He 2015, section 4.1, A"),
    "resnet152_a": Entry(resnet(BOTTLENECK_A, D152, BROAD), "He 2015, section 4.1, A"),
    "plain18": Entry(resnet(PLAIN, D18, NARROW), "He 2015, table 2"),
    "plain34": Entry(resnet(PLAIN, D34, NARROW), "He 2015, table 2"),
    "resnet50_d": Entry(resnet(BOTTLENECK_D, D50, BROAD, DEEP_STEM), "He 2018, figure 2, D"),
    "resnetblur50": Entry(
        resnet(BOTTLENECK_BLUR, D50, BROAD, BLUR_STEM), "Zhang 2019, section 3.2"
    ),
    "preact_resnet18": Entry(preact(PREACT, D18, NARROW), "He 2016, figure 1b"),
    "preact_resnet50": Entry(preact(PREACT_BOTTLENECK, D50, BROAD), "He 2016, figure 1b"),
    "preact_resnet101": Entry(preact(PREACT_BOTTLENECK, D101, BROAD), "He 2016, figure 1b"),
    "preact_resnet152": Entry(preact(PREACT_BOTTLENECK, D152, BROAD), "He 2016, table 5"),
    "preact_resnet200": Entry(preact(PREACT_BOTTLENECK, D200, BROAD), "He 2016, table 5"),
    # the parameters of ResNets of equal depth
    "iresnet50": Entry(improved(D50), "Duta 2020, authors' code"),
    "iresnet101": Entry(improved(D101), "Duta 2020, authors' code"),
    "iresnet152": Entry(improved(D152), "Duta 2020, authors' code"),
    "iresnet200": Entry(improved(D200), "Duta 2020, authors' code"),
    "wide_resnet50_2": Entry(
        resnet(BOTTLENECK_WIDE, D50, BROAD), "Zagoruyko 2016, section 3, torchvision"
    ),
    "wide_resnet101_2": Entry(
        resnet(BOTTLENECK_WIDE, D101, BROAD), "Zagoruyko 2016, section 3, torchvision"
    ),
    "resnext50_32x4d": Entry(resnet(resnext(32, "/2"), D50, BROAD), "Xie 2016, table 1"),
    "resnext101_32x4d": Entry(resnet(resnext(32, "/2"), D101, BROAD), "Xie 2016, table 3"),
    "resnext101_32x8d": Entry(resnet(resnext(32, ""), D101, BROAD), "Xie 2016, torchvision"),
    "resnext101_64x4d": Entry(resnet(resnext(64, ""), D101, BROAD), "Xie 2016, table 4"),
    "densenet121": Entry(DENSENET121, "Huang 2017, table 1"),
    "densenet161": Entry(densenet((6, 12, 36, 24), 48, 96), "Huang 2017, table 1"),
    "densenet169": Entry(densenet((6, 12, 32, 32), 32, 64), "Huang 2017, table 1"),
    "densenet201": Entry(densenet((6, 12, 48, 32), 32, 64), "Huang 2017, table 1"),
    "chexnet": Entry(replace(DENSENET121, num_classes=14), "Rajpurkar 2017, section 2"),
    # attention gates of hidden width c // 16
    "se_resnet18": Entry(resnet(attended(BASIC, "se/16"), D18, NARROW), "Hu 2017, figure 3"),
    "se_resnet50": Entry(resnet(attended(BOTTLENECK, "se/16"), D50, BROAD), "Hu 2017, table 1"),
    "eca_resnet18": Entry(resnet(attended(BASIC, "eca"), D18, NARROW), "Wang 2019, figure 2"),
    "eca_resnet50": Entry(resnet(attended(BOTTLENECK, "eca"), D50, BROAD), "Wang 2019, figure 2"),
    "cbam_resnet18": Entry(resnet(attended(BASIC, "cbam/16"), D18, NARROW), "Woo 2018, figure 3"),
    "cbam_resnet50": Entry(
        resnet(attended(BOTTLENECK, "cbam/16"), D50, BROAD), "Woo 2018, figure 3"
    ),
    # the products are scaled, as in multi-head attention
    "nonlocal_resnet50": Entry(with_nonlocal(RESNET50), "Wang 2017, section 4.1"),
    "botnet50": Entry(BOTNET50, "Srinivas 2021, table 1, without relative positions"),
    "vgg11": Entry(vgg(VGG, (1, 1, 2, 2, 2)), "Simonyan 2014, table 1, A"),
    "vgg13": Entry(vgg(VGG, (2, 2, 2, 2, 2)), "Simonyan 2014, table 1, B"),
    "vgg16": Entry(vgg(VGG, (2, 2, 3, 3, 3)), "Simonyan 2014, table 1, D"),
    "vgg19": Entry(vgg(VGG, (2, 2, 4, 4, 4)), "Simonyan 2014, table 1, E"),
    "vgg11_bn": Entry(vgg(VGG_BN, (1, 1, 2, 2, 2)), "Simonyan 2014, table 1, A with batch norm"),
    "vgg13_bn": Entry(vgg(VGG_BN, (2, 2, 2, 2, 2)), "Simonyan 2014, table 1, B with batch norm"),
    "vgg16_bn": Entry(vgg(VGG_BN, (2, 2, 3, 3, 3)), "Simonyan 2014, table 1, D with batch norm"),
    "vgg19_bn": Entry(vgg(VGG_BN, (2, 2, 4, 4, 4)), "Simonyan 2014, table 1, E with batch norm"),
    "alexnet": Entry(ALEXNET, "Krizhevsky 2014, one tower, torchvision"),
    # without the auxiliary heads, which only training uses (with them 13,004,888)
    "googlenet": Entry(GOOGLENET, "Szegedy 2014, table 1, torchvision"),
    "darknet53": Entry(darknet((1, 2, 8, 8, 4), (64, 128, 256, 512, 1024)), "Redmon 2018, table 1"),
    "convnext_tiny": Entry(convnext((3, 3, 9, 3), (96, 192, 384, 768)), "Liu 2022, table 9"),
    "vit_base_patch16_gap": Entry(vision_transformer(768, 12), "Beyer 2022, mean pooling"),
}
