"""Networks for sound and text: keyword spotting, speech, raw waveforms, characters and the
encoders of translators."""

from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.twins import with_merge
from plusx.zoo.blocks import BASIC, stages
from plusx.zoo.entry import Entry


def keyword(depth: int, pool: str, width: int) -> Net:
    """res8 and res26 of Tang 2017: norms without weights, after every convolution's ReLU. 101
    frames of 40 cepstral coefficients, 12 labels."""
    block = Block(body="norm | conv3 act norm conv3 act +")
    first = Block(body="conv3 act norm conv3 act +")
    return Net(
        stem=f"conv3 act {pool}",
        stem_width=width,
        stages=(Stage(block=block, depth=depth, width=width, first=first),),
        tail="norm pool",
        in_channels=1,
        num_classes=12,
        size=(101, 40),
        affine=False,
    )


def dilated(layer: int) -> str:
    """Layer 1, 2, ... of res15: the dilation doubles after every third."""
    dilation = 2 ** ((layer - 1) // 3)
    return f"conv3d{dilation}" if dilation > 1 else "conv3"


def dilated_keyword(width: int) -> Net:
    """res15 of Tang 2017: dilations of 1 to 16 instead of pooling."""
    leads = ("", *("norm | ",) * 5)
    blocks = tuple(
        Block(body=f"{lead}{dilated(2 * index + 1)} act norm {dilated(2 * index + 2)} act +")
        for index, lead in enumerate(leads)
    )
    return Net(
        stem="conv3 act",
        stem_width=width,
        stages=(Stage(block=blocks, depth=1, width=width),),
        tail="norm conv3d16 act norm pool",
        in_channels=1,
        num_classes=12,
        size=(101, 40),
        affine=False,
    )


def characters(depths: tuple[int, ...]) -> Net:
    """Figure 1 of Conneau 2016 with its optional shortcuts: 1,024 of 69 characters, 4 topics."""
    block = Block(body="conv3 norm act conv3 norm + act", shortcut="conv1 norm")
    widths, strides = (64, 128, 256, 512), (1, 1, 1, 1)
    return Net(
        stem="embed16 conv3",
        stem_width=64,
        stages=stages(block, depths, widths, strides=strides, enter="maxpool3s2"),
        tail="top8 fc2048 act fc2048 act",
        ndim=1,
        in_channels=69,
        num_classes=4,
        size=1024,
    )


def words(body: str) -> Net:
    """Convolutions over word embeddings, for training sets of thousands of texts: branches are
    scaled by 0.1 (Szegedy 2016, section 3.3)."""
    block = Block(body=body)
    return Net(
        stem="embed128 drop.7",
        stem_width=128,
        stages=(Stage(block=block, depth=2, width=128),),
        tail="pool drop.5",
        ndim=1,
        in_channels=20_000,
        num_classes=2,
        size=512,
    )


def separable(kernel: int) -> Block:
    """A block of QuartzNet: five depthwise separable convolutions and a projected shortcut."""
    inner = f"conv{kernel}dw conv1 norm act " * 4
    body = f"{inner}conv{kernel}dw conv1 norm + act"
    return Block(body=body, shortcut="conv1 norm", identity="conv1 norm")


def quartznet() -> Net:
    """Table 1 of Kriman 2019, 15 x 5: 64 mel bands, 28 letters and the blank. `features` returns
    the sequence, as input of a recogniser; the linear head is on its mean."""
    kernels, widths = (33, 39, 51, 63, 75), (256, 256, 512, 512, 512)
    return Net(
        stem="conv33s2dw conv1 norm act",
        stem_width=256,
        stages=tuple(
            Stage(block=separable(kernel), depth=3, width=width)
            for kernel, width in zip(kernels, widths)
        ),
        tail="conv87d2dw conv1 norm act conv1*2 norm act pool",
        ndim=1,
        in_channels=64,
        num_classes=29,
        size=1000,
    )


def waveform() -> Net:
    """ResNet-18 in one dimension: one second of sound at 16 kHz, 35 words."""
    return Net(
        stem="conv7s2 norm act maxpool3s2",
        stem_width=64,
        stages=stages(BASIC, (2, 2, 2, 2), (64, 128, 256, 512)),
        ndim=1,
        in_channels=1,
        num_classes=35,
        size=16000,
    )


def gated(width: int, depth: int, embed: int, vocabulary: int, drop: str) -> Net:
    """The encoder of Gehring 2017, section 3: embeddings of tokens and positions, and blocks of a
    convolution, a gated linear unit and a sum that is scaled by the root of 0.5."""
    block = Block(body=f"{drop} conv3*2b glu + scale.707107")
    return Net(
        stem=f"embed{embed} pos {drop} conv1b",
        stem_width=width,
        stages=(Stage(block=block, depth=depth, width=width),),
        ndim=1,
        in_channels=vocabulary,
        size=100,
    )


def attentive(width: int, depth: int, heads: int, vocabulary: int, drop: str) -> Net:
    """The encoder of Vaswani 2017, section 3.1, with the norms first (Xiong 2020)."""
    attend = Block(body=f"norm attn{heads}b conv1b {drop} +")
    perceive = Block(body=f"norm conv1*4b act {drop} conv1b {drop} +")
    return Net(
        stem=f"embed{width} pos {drop}",
        stem_width=width,
        stages=(Stage(block=(attend, perceive), depth=depth, width=width),),
        tail="norm pool",
        ndim=1,
        in_channels=vocabulary,
        size=100,
        norm="layer",
    )


# 10 blocks, 7,853 German words: Trevett's lesson 5 on Multi30k (bentrevett/pytorch-seq2seq)
CONVS2S = gated(512, 10, 256, 7853, "drop.25")
CONVS2S_SMALL = gated(192, 4, 192, 4000, "drop.2")
TRANSFORMER_SMALL = attentive(192, 3, 4, 4000, "drop.2")


def temporal(depth: int, width: int) -> Net:
    """TC-ResNet of Choi 2019: the mel bands are channels, the convolutions go along time. One
    second of 98 frames with 40 coefficients, 12 labels."""
    block = Block(body="conv9s norm act conv9 norm + act", shortcut="conv1s norm act")
    return Net(
        stem="conv3 norm act",
        stem_width=16 * width // 2,
        stages=stages(
            block, (depth,) * 3, tuple(c * width // 2 for c in (24, 32, 48)), strides=(2, 2, 2)
        ),
        ndim=1,
        in_channels=40,
        num_classes=12,
        size=98,
    )


def recogniser() -> Net:
    """He 2015's basic blocks along time for a [head] kind = "ctc": 40 mel bands at 10 ms, an output
    every 20 ms, the 16 letters of the English digits, a space and the blank."""
    block = Block(body="conv5s norm act conv5 norm + act")
    return Net(
        stem="conv5s2 norm act",
        stem_width=96,
        stages=stages(block, (2, 2, 2), (96, 96, 96), strides=(1, 1, 1)),
        ndim=1,
        in_channels=40,
        num_classes=18,
        size=1000,
    )


SEQUENCE: dict[str, Entry] = {
    "res8": Entry(keyword(3, "avgpool(4,3)s(4,3)", 45), "Tang 2017, section 3"),
    "res15": Entry(dilated_keyword(45), "Tang 2017, section 3"),
    "res26": Entry(keyword(12, "avgpool2s2", 45), "Tang 2017, section 3"),
    "res8_narrow": Entry(keyword(3, "avgpool(4,3)s(4,3)", 19), "Tang 2017, section 3"),
    "res15_narrow": Entry(dilated_keyword(19), "Tang 2017, section 3"),
    "res26_narrow": Entry(keyword(12, "avgpool2s2", 19), "Tang 2017, section 3"),
    "quartznet15x5": Entry(quartznet(), "Kriman 2019, table 1"),
    "tc_resnet8": Entry(temporal(1, 2), "Choi 2019, table 1"),
    "tc_resnet14": Entry(temporal(2, 3), "Choi 2019, table 1"),
    "tc_plain8": Entry(
        with_merge(temporal(1, 2), "none"), "Choi 2019, the plain twin of tc_resnet8"
    ),
    "resnet14_speech": Entry(recogniser(), "He 2015, section 3.3, in one dimension"),
    "plain14_speech": Entry(
        with_merge(recogniser(), "none"), "He 2015, the plain twin of resnet14_speech"
    ),
    "resnet18_1d": Entry(waveform(), "He 2015, table 1, in one dimension"),
    "vdcnn9": Entry(characters((1, 1, 1, 1)), "Conneau 2016, table 2", depth=9),
    "vdcnn17": Entry(characters((2, 2, 2, 2)), "Conneau 2016, table 2", depth=17),
    "vdcnn29": Entry(characters((5, 5, 2, 2)), "Conneau 2016, table 2", depth=29),
    "resnet5_text": Entry(
        words("conv3b act drop.5 conv1b scale.1 +"), "Szegedy 2016, section 3.3, over words"
    ),
    "plain5_text": Entry(
        words("conv3b act drop.5 conv1b scale.1"),
        "Szegedy 2016, the plain twin of resnet5_text",
    ),
    "convs2s_encoder": Entry(CONVS2S, "Gehring 2017, sections 3.1 to 3.4"),
    "convs2s_plain_encoder": Entry(
        with_merge(CONVS2S, "none"), "Gehring 2017, the plain twin of convs2s_encoder"
    ),
    "convs2s_small_encoder": Entry(CONVS2S_SMALL, "Gehring 2017, narrower and less deep"),
    "convs2s_small_plain_encoder": Entry(
        with_merge(CONVS2S_SMALL, "none"), "Gehring 2017, the plain twin of convs2s_small_encoder"
    ),
    "transformer_small_encoder": Entry(
        TRANSFORMER_SMALL, "Vaswani 2017, section 3.1, narrower and less deep"
    ),
    "transformer_small_plain_encoder": Entry(
        with_merge(TRANSFORMER_SMALL, "none"),
        "Vaswani 2017, the plain twin of transformer_small_encoder",
    ),
}
