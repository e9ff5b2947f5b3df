"""The blocks of the literature, one sentence each, in the order in which the papers draw them."""

from dataclasses import replace

from plusx.grammar.spec import Block, Stage, Stride


# He 2015, table 1: the widths of stages of basic blocks and of bottlenecks
NARROW, BROAD = (64, 128, 256, 512), (256, 512, 1024, 2048)

# He 2015: figure 5, and the shortcuts A, B and C of section 4.1.
BASIC = Block(body="conv3s norm act conv3 norm + act")
BASIC_A = replace(BASIC, shortcut="pad")
BASIC_C = replace(BASIC, identity="conv1 norm")
PLAIN = Block(body="conv3s norm act conv3 norm act")
ONE_LAYER_A = Block(body="conv3s norm + act", shortcut="pad")  # He 2016, table 3
BOTTLENECK = Block(body="conv1/4 norm act conv3/4s norm act conv1 norm + act")  # v1.5
BOTTLENECK_V1 = Block(body="conv1/4s norm act conv3/4 norm act conv1 norm + act")
BOTTLENECK_A = replace(BOTTLENECK, shortcut="pad")
BOTTLENECK_D = replace(BOTTLENECK, shortcut="avgpool2s conv1 norm")  # He 2018
BOTTLENECK_BLUR = Block(body="conv1/4 norm act conv3/4 norm act blur3s conv1 norm + act")
BOTTLENECK_WIDE = Block(body="conv1/2 norm act conv3/2s norm act conv1 norm + act")

# He 2016: full pre-activation. FIRST_ is the first block after a stem that ends in `norm act`.
PREACT = Block(body="norm act | conv3s norm act conv3 +", shortcut="conv1s")
PREACT_A = replace(PREACT, shortcut="pad")
FIRST_PREACT = Block(body="conv3s norm act conv3 +", shortcut="conv1s")
FIRST_PREACT_A = replace(FIRST_PREACT, shortcut="pad")
PREACT_ONE_LAYER_A = Block(body="norm act | conv3s +", shortcut="pad")  # table 3
FIRST_PREACT_ONE_LAYER_A = Block(body="conv3s +", shortcut="pad")
PREACT_BOTTLENECK = Block(
    body="norm act | conv1/4 norm act conv3/4s norm act conv1 +", shortcut="conv1s"
)
PREACT_BOTTLENECK_V1 = Block(
    body="norm act | conv1/4s norm act conv3/4 norm act conv1 +", shortcut="conv1s"
)

# He 2016, table 1: the kinds of shortcut. The key is the end of the network's name.
SHORTCUTS: dict[str, Block] = {
    "constant": Block(
        body="conv3s norm act conv3 norm scale.5 + act", shortcut="pad scale.5", identity="scale.5"
    ),
    "constant_shortcut": replace(BASIC, shortcut="pad scale.5", identity="scale.5"),
    "exclusive_gate": Block(body="conv3s norm act conv3 norm ~ act", shortcut="pad"),
    "shortcut_gate": replace(BASIC, shortcut="pad gate", identity="gate"),
    "conv_shortcut": BASIC_C,
    "dropout_shortcut": replace(BASIC, shortcut="pad drop.5", identity="drop.5"),
}
# He 2016, table 2: the order of norm and act. Full pre-activation is PREACT_A.
ORDERS: dict[str, Block] = {
    "norm_after": Block(body="conv3s norm act conv3 + norm act", shortcut="pad"),
    "act_before": Block(body="conv3s norm act conv3 norm act +", shortcut="pad"),
    "act_only": Block(body="act | conv3s norm act conv3 norm +", shortcut="pad"),
}
BOTTLENECK_ORDERS: dict[str, Block] = {
    "norm_after": Block(
        body="conv1/4s norm act conv3/4 norm act conv1 + norm act", shortcut="conv1s"
    ),
    "act_before": Block(body="conv1/4s norm act conv3/4 norm act conv1 norm act +"),
    "act_only": Block(body="act | conv1/4s norm act conv3/4 norm act conv1 norm +"),
}

# Duta 2020, authors' code: the first block of a stage, the second, those between, and the last.
# Only the first has a norm at the end of its branch and only the last has a norm and act after the
# sum, so the second has no norm to begin with.
IMPROVED_START = Block(
    body="conv1/4 norm act conv3/4s norm act conv1 norm +", shortcut="maxpool3s conv1 norm"
)
IMPROVED_SECOND = Block(body="act conv1/4 norm act conv3/4 norm act conv1 +")
IMPROVED_MIDDLE = Block(body="norm act conv1/4 norm act conv3/4 norm act conv1 +")
IMPROVED_END = Block(body="norm act conv1/4 norm act conv3/4 norm act conv1 + norm act")

# A kernel along each dimension instead of 3 x 3. The stride is on the second convolution: with a
# stride on the first, every other row would reach neither the branch nor the shortcut.
AXIAL_A = Block(body="conv(1,3) norm act conv(3,1)s norm + act", shortcut="pad")

# without norms
FIXUP_A = Block(  # Zhang 2019b, figure 1, and the authors' code for CIFAR
    body="shift | conv3s shift act shift conv3 scale1 shift + act", shortcut="pad"
)
REZERO_A = Block(body="conv3sb act conv3b scale0 + act", shortcut="pad")  # Bachlechner 2020
SKIPINIT_A = Block(body="act | conv3sb act conv3b scale0 +", shortcut="pad")  # De 2020

WIDE = Block(body="norm act | conv3s norm act drop.3 conv3 +", shortcut="conv1s")
DENSE = Block(body="norm act conv3 &")
DENSE_BC = Block(body="norm act conv1*4 norm act conv3 &")
HIGHWAY = Block(body="conv3b act ~", gate="conv3b")
CHANGE = Block(body="conv3b act")  # the plain layer where a highway changes its width
VGG = Block(body="conv3b act")
VGG_BN = Block(body="conv3b norm act")
DARKNET = Block(body="conv1/2 norm act conv3 norm act +")
CONVNEXT = Block(body="conv7dwb norm conv1*4b act conv1b scale1e-6 +")
BOTNET = Block(body="conv1/4 norm act attn4 avgpool2s norm act conv1 norm + act")
NONLOCAL = Block(body="attn1/2b conv1b norm +")
ATTEND = Block(body="norm attn12b conv1b +")
PERCEIVE = Block(body="norm conv1*4b act conv1b +")


def attended(body: Block, gate: str) -> Block:
    """Return the block with an attention gate at the end of the branch (SE, ECA, CBAM)."""
    return replace(body, body=body.body.replace(" +", f" {gate} +"))


def resnext(groups: int, ratio: str) -> Block:
    """Return a block of ResNeXt: `ratio` is the inner over the outer width ("/2", "", "*2")."""
    return Block(body=f"conv1{ratio} norm act conv3{ratio}sg{groups} norm act conv1 norm + act")


def stages(
    block: Block,
    depths: tuple[int, ...],
    widths: tuple[int, ...],
    *,
    strides: tuple[Stride, ...] = (1, 2, 2, 2),
    enter: str = "",
    first: Block | None = None,
) -> tuple[Stage, ...]:
    """Return stages of one block. `first` is the first block of the first stage, `enter` the layers
    on entry to the other stages."""
    return tuple(
        Stage(
            block=block,
            depth=depth,
            width=width,
            stride=stride,
            enter=enter if position else "",
            first=None if position else first,
        )
        for position, (depth, width, stride) in enumerate(zip(depths, widths, strides))
    )
