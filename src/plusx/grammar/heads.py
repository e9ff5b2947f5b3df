"""What stands on the features of a network in place of its linear head: heads as frozen data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Fcn:
    """A fully convolutional head (Long et al. 2015), in torchvision's form.

    stride: of the features it stands on, by dilation instead of striding; 32 leaves them as they
    are. auxiliary: a second head on the last stage but one, in training.
    """

    kind: Literal["fcn"] = "fcn"
    stride: Literal[8, 16, 32] = 8
    auxiliary: bool = False


@dataclass(frozen=True, kw_only=True)
class DeepLab:
    """DeepLabV3 (Chen et al. 2017): dilated convolutions of several rates side by side."""

    kind: Literal["deeplabv3"] = "deeplabv3"
    stride: Literal[8, 16] = 8
    auxiliary: bool = False


@dataclass(frozen=True, kw_only=True)
class UNet:
    """A U-Net decoder (Ronneberger et al. 2015) over all stages; works in 1-D, 2-D and 3-D.

    width: channels at the finest resolution; every coarser one has twice as many, up to 8 times.
    """

    kind: Literal["unet"] = "unet"
    width: int = 32


@dataclass(frozen=True, kw_only=True)
class Fcos:
    """An anchor-free one-stage detector (Tian et al. 2019) on a slim feature pyramid.

    width: channels of the pyramid and the towers; depth: convolutions in each tower; finest: the
    stride of the finest stage that the pyramid stands on; levels: how many it has, the coarser
    ones by convolutions with stride 2.
    """

    kind: Literal["fcos"] = "fcos"
    width: int = 64
    depth: int = 2
    finest: Literal[2, 4, 8, 16] = 8
    levels: int = 4


@dataclass(frozen=True, kw_only=True)
class Yolo:
    """YOLOv3 (Redmon and Farhadi 2018): three resolutions, three anchors each."""

    kind: Literal["yolo"] = "yolo"


@dataclass(frozen=True, kw_only=True)
class FasterRcnn:
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017), by torchvision."""

    kind: Literal["faster-rcnn"] = "faster-rcnn"
    width: int = 256


@dataclass(frozen=True, kw_only=True)
class MaskRcnn:
    """Mask R-CNN (He et al. 2017): Faster R-CNN and a mask for each box, by torchvision."""

    kind: Literal["mask-rcnn"] = "mask-rcnn"
    width: int = 256


Head = Fcn | DeepLab | UNet | Fcos | Yolo | FasterRcnn | MaskRcnn
HEADS: dict[str, type[Head]] = {
    "fcn": Fcn,
    "deeplabv3": DeepLab,
    "unet": UNet,
    "fcos": Fcos,
    "yolo": Yolo,
    "faster-rcnn": FasterRcnn,
    "mask-rcnn": MaskRcnn,
}
