"""Networks for volumes and video: three dimensions."""

from plusx.grammar.spec import Net
from plusx.zoo.blocks import BASIC, stages
from plusx.zoo.entry import Entry


def video() -> Net:
    """R3D-18 as torchvision builds it: 16 frames of 112 x 112 pixels, 400 actions."""
    return Net(
        stem="conv(3,7,7)s(1,2,2) norm act",
        stem_width=64,
        stages=stages(BASIC, (2, 2, 2, 2), (64, 128, 256, 512)),
        ndim=3,
        num_classes=400,
        size=(16, 112, 112),
    )


VOLUME: dict[str, Entry] = {"r3d_18": Entry(video(), "Tran 2017, table 1, R3D")}
