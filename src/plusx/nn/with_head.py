"""A network with a head on its features: a class for every position, or boxes."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.backbone import backbone_of, stem_maps
from plusx.grammar.heads import (
    DETECTORS,
    DeepLab,
    FasterRcnn,
    Fcn,
    Fcos,
    Head,
    MaskRcnn,
    UNet,
    Yolo,
)
from plusx.grammar.model import WithHead
from plusx.grammar.spec import Stride
from plusx.nn.decoders import UNetDecoder, Upsampled
from plusx.nn.feature_info import FeatureInfo, feature_info
from plusx.nn.network import Network
from plusx.nn.pyramid import FcosHead, YoloHead


# of a head: its module, made of the head, the levels that it can stand on, and classes
HEAD_MODULES: dict[type, Callable[[Any, FeatureInfo, int], nn.Module]] = {
    Fcn: Upsampled,
    DeepLab: Upsampled,
    UNet: UNetDecoder,
    Fcos: FcosHead,
    Yolo: YoloHead,
}


class NetworkWithHead(nn.Module):
    """A network whose linear head is replaced by one that `head` describes.

    The network is built anew without its head and what pools before it, and dilated where the head
    wants finer features; its weights are the given network's. What it gives is, by the head,

    fcn, deeplabv3, unet: logits (n, k, *s) of the input's size; in training with an auxiliary head
        two of them;
    fcos: a map a level (n, k + 5, h, w), finest first: logits of the classes, the distances to
        left, top, right and bottom in pixels of the input, the logit of centre-ness;
    yolo: a map a level (n, 3 (5 + k), h, w), finest first: for each anchor x, y, width, height,
        objectness and classes, as the paper's t and logits;
    faster-rcnn, mask-rcnn: in evaluation torchvision's list of what was found in each image (see
        `TwoStage`); `losses` is what they train by.

    A network of images that is given volumes (n, c, d, h, w) tells the classes of every slice by
    itself.

    Raises UserError where the head cannot stand on the network.
    """

    preprocessing: dict[str, Any] | None = None  # how inputs are prepared, where it is known
    classes: tuple[str, ...] = ()  # names of the outputs, where they are known

    def __init__(self, backbone: nn.Module, head: Head, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a head for {num_classes} classes; there is at least 1")
        self.head_spec, self.num_classes = head, num_classes
        self.backbone = without_head(backbone, head)
        levels = feature_info(self.backbone)
        self.ndim = levels.net.ndim
        if head.kind in DETECTORS and levels.net.ndim != 2:
            raise UserError(
                f'[head] kind = "{head.kind}" finds boxes in images; the network has '
                f"{levels.net.ndim} dimensions"
            )
        self.stem_positions = (
            tuple(found.position for found in stem_maps(self.backbone.spec))
            if isinstance(self.backbone, Network)
            else ()
        )
        self.head = self._new_head()
        if isinstance(head, FasterRcnn | MaskRcnn) and head.frozen_norms:
            from plusx.nn.two_stage import frozen

            frozen(self.backbone)

    def _new_head(self) -> nn.Module:
        head, levels = self.head_spec, feature_info(self.backbone)
        if isinstance(head, FasterRcnn | MaskRcnn):
            # torchvision, which these are made of, is as slow to import as torch itself
            from plusx.nn.two_stage import TwoStage

            return TwoStage(head, levels, self.num_classes)
        return HEAD_MODULES[type(head)](head, levels, self.num_classes)

    @property
    def spec(self) -> WithHead:
        """The model that builds this network again."""
        backbone: Any = self.backbone.spec
        return WithHead(backbone=backbone, head=self.head_spec, num_classes=self.num_classes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at the end of each stage of the backbone."""
        widths: Any = self.backbone.widths
        return tuple(widths)

    @property
    def strides(self) -> tuple[Stride, ...]:
        """Input positions a step at the end of each stage of the backbone."""
        strides: Any = self.backbone.strides
        return tuple(strides)

    def features(self, x: Tensor, out: Sequence[int] | None = None) -> list[Tensor]:
        """The backbone's maps at the ends of its stages, or of those in `out`."""
        maps: list[Tensor] = self.backbone.features(x, out)  # type: ignore[operator]
        return maps

    def embed(self, x: Tensor) -> Float[Tensor, "n width"]:
        """The mean over the backbone's last map."""
        return self.features(x, [-1])[0].flatten(2).mean(2)

    def reset_head(self, num_classes: int) -> None:
        """A new head for `num_classes`; `backbone` alone is the network without one."""
        if num_classes < 1:
            raise UserError(f"a head for {num_classes} classes; `net.backbone` has no head")
        like = next(self.parameters())
        self.num_classes = num_classes
        if num_classes != len(self.classes):
            self.classes = ()
        self.head = self._new_head().to(like).train(self.training)

    @property
    def level_strides(self) -> tuple[tuple[int, int], ...]:
        """Of a detector's levels: the input's positions a step, down and right, finest first."""
        strides: Any = self.head.strides
        return tuple(strides)

    @property
    def detector(self) -> nn.Module:
        """The two stages of a Faster or Mask R-CNN: `fpn`, `rpn` and `roi_heads`."""
        if not isinstance(self.head_spec, FasterRcnn | MaskRcnn):
            raise AttributeError(f"a network with a head {self.head_spec.kind!r} has one stage")
        return self.head

    def losses(
        self,
        x: Float[Tensor, "n c h w"],
        boxes: Float[Tensor, "n m 6"],
        masks: UInt8[Tensor, "n m h w"] | None = None,
    ) -> dict[str, Tensor]:
        """What a Faster or Mask R-CNN trains by, under torchvision's names; see `TwoStage`."""
        _, stages = self.maps(x)
        stages_of: Any = self.detector
        losses: dict[str, Tensor] = stages_of.losses(x, stages, boxes, masks)
        return losses

    def maps(
        self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of the stem that are finer than the stages', and those of the stages."""
        if not isinstance(self.backbone, Network):
            return [], self.backbone.features(x)  # type: ignore[operator]
        stem, stages = self.backbone.pyramid(x, self.stem_positions)
        stages[-1] = self.backbone.tail(stages[-1])
        return stem, stages

    def forward(self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]) -> Any:
        if x.ndim == self.ndim + 3 and self.head_spec.kind not in DETECTORS:
            return self._by_slice(x)
        return self.head(x, *self.maps(x))

    def _by_slice(self, x: Float[Tensor, "n c d *s"]) -> Any:
        """Logits (n, k, d, *s): every slice along the first dimension is looked at by itself."""
        told = self(x.transpose(1, 2).flatten(0, 1))
        every = told if isinstance(told, tuple) else (told,)
        made = tuple(each.unflatten(0, (x.shape[0], -1)).transpose(1, 2) for each in every)
        return made if isinstance(told, tuple) else made[0]


def without_head(backbone: nn.Module, head: Head) -> nn.Module:
    """The same network and weights as a backbone; see `grammar.dense.backbone_of`."""
    if isinstance(backbone, Network):
        spec = backbone_of(backbone.spec, head)
        if spec == backbone.spec:
            return backbone
        given = next(backbone.parameters())
        made = Network(spec).to(given)
        kept = {
            key: each for key, each in backbone.state_dict().items() if key in made.state_dict()
        }
        made.load_state_dict(kept)
        return made.train(backbone.training)
    coarsest = max(backbone.strides)  # type: ignore[arg-type]
    if isinstance(head, Fcn | DeepLab) and coarsest > head.stride:
        raise UserError(
            f"[head] stride = {head.stride}: {backbone.name} is an external module of stride "
            f"{coarsest}, which cannot be dilated"
        )
    backbone.reset_head(0)  # type: ignore[operator]
    backbone.tail = nn.Identity()
    return backbone
