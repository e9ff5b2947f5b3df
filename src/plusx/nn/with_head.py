"""A network with a head on its features: for segmentation, detection, or sequences of tokens."""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.grammar.backbone import backbone_of, embedding_map, stem_maps
from plusx.grammar.heads import (
    ConvDecoder,
    Ctc,
    DeepLab,
    Fcn,
    Fcos,
    Head,
    TransformerDecoder,
    UNet,
    Yolo,
)
from plusx.grammar.model import WithHead
from plusx.nn.ctc import CtcHead
from plusx.nn.decoders import UNetDecoder, Upsampled
from plusx.nn.feature_info import FeatureInfo, feature_info
from plusx.nn.masking import padded
from plusx.nn.network import Backbone, Network
from plusx.nn.pyramid import FcosHead, YoloHead
from plusx.nn.token_decoders import (
    AttentionDecoder,
    ConvolutionalDecoder,
    Memory,
    TokenDecoder,
    first_tokens,
)


# type of head: its module, which takes the head, the maps and the number of classes
HEAD_MODULES: dict[type, Callable[[Any, FeatureInfo, int], nn.Module]] = {
    Fcn: Upsampled,
    DeepLab: Upsampled,
    UNet: UNetDecoder,
    Fcos: FcosHead,
    Yolo: YoloHead,
    ConvDecoder: ConvolutionalDecoder,
    TransformerDecoder: AttentionDecoder,
    Ctc: CtcHead,
}


class NetworkWithHead(Backbone):
    """A network with another head than a linear one.

    The backbone is rebuilt without its linear head and the pooling before it, dilated if the head
    needs finer features, with the same weights. Outputs by kind of head:

    fcn, deeplabv3, unet: logits (n, k, *s) of the input's size; in training with an auxiliary head
        a pair of them;
    fcos: a map per level (n, k + 5, h, w), finest first: logits of the classes, the distances to
        left, top, right and bottom in pixels of the input, the logit of centre-ness;
    yolo: a map per level (n, 3 (5 + k), h, w), finest first: for each anchor x, y, width, height,
        objectness and classes, as the paper's t and logits;
    conv-decoder, transformer-decoder: logits (n, k) of the first token; `memory` and `decoder` give
        those of the others (see `plusx.nn.decoding`);
    ctc: logits (n, k, t / stride) of the tokens at each position, the blank first;
    faster-rcnn, mask-rcnn: in evaluation torchvision's list of detections (see `TwoStage`);
        `losses` returns the training losses.

    Volumes (n, c, d, h, w) for a network of images are predicted slice by slice. Raises UserError
    if the head does not suit the network.
    """

    head_spec: Head

    def __init__(self, backbone: Backbone, head: Head, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"a head for {num_classes} classes; it must be at least 1")
        self.head_spec, self.num_classes = head, num_classes
        self.backbone = without_head(backbone, head)
        self.style, self.in_channels = self.backbone.style, self.backbone.in_channels
        self.widths, self.strides = self.backbone.widths, self.backbone.strides
        if head.task == "detect" and self.style.ndim != 2:
            raise UserError(
                f'[head] kind = "{head.kind}" finds boxes in images; the network has '
                f"{self.style.ndim} dimensions"
            )
        self.stem_positions = tuple(stem.position for stem in stem_maps(self.style))
        self.embedding = embedding_map(self.style)
        self.head = self._new_head()
        if head.two_stage and head.frozen_norms:  # type: ignore[union-attr]
            from plusx.nn.two_stage import freeze_batch_norms

            freeze_batch_norms(self.backbone)
        self.spec = WithHead(backbone=self.backbone.spec, head=head, num_classes=num_classes)

    @property
    def base(self) -> Backbone:
        return self.backbone

    def _new_head(self) -> nn.Module:
        head, levels = self.head_spec, feature_info(self.backbone)
        if head.two_stage:
            # imported late: torchvision takes as long to import as torch
            from plusx.nn.two_stage import TwoStage

            return TwoStage(head, levels, self.num_classes)  # type: ignore[arg-type]
        return HEAD_MODULES[type(head)](head, levels, self.num_classes)

    def pyramid(
        self, x: Tensor, stem: Sequence[int], out: Sequence[int] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.backbone.pyramid(x, stem, out)

    def embed(self, x: Tensor) -> Float[Tensor, "n width"]:
        """Return the mean over the backbone's last map."""
        return self.features(x, [-1])[0].flatten(2).mean(2)

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes`; `backbone` alone has no head."""
        if num_classes < 1:
            raise UserError(
                f"a head for {num_classes} classes; use `net.backbone` for a network without a head"
            )
        like = next(self.parameters())
        self._reset_classes(num_classes)
        self.head = self._new_head().to(like).train(self.training)

    @property
    def level_strides(self) -> tuple[tuple[int, int], ...]:
        """Strides of a detector's levels: input positions per step, down and right, finest
        first."""
        strides: Any = self.head.strides
        return tuple(strides)

    @property
    def detector(self) -> nn.Module:
        """The two stages of a Faster or Mask R-CNN: `fpn`, `rpn` and `roi_heads`."""
        if not self.head_spec.two_stage:
            raise AttributeError(f"a network with a head {self.head_spec.kind!r} has one stage")
        return self.head

    @property
    def decoder(self) -> TokenDecoder:
        """The decoder of a network that predicts a sequence of tokens."""
        if self.head_spec.task != "decode":
            raise AttributeError(f"a network with a head {self.head_spec.kind!r} has no decoder")
        decoder: Any = self.head
        return decoder

    def memory(
        self,
        x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"],
        lengths: Int[Tensor, "n"] | None = None,
    ) -> Memory:
        """Return what the decoder attends to: the positions of the last map.

        lengths: valid positions of each input along its last dimension; None: all
        """
        if lengths is None:
            features, embedded = self._source(x)
            return self.decoder.memory(features, None, embedded)
        with padded(self.backbone, x.shape[-1], lengths) as positions:
            features, embedded = self._source(x)
            mask = positions.mask(features.shape[-1])
        valid = None if mask is None else mask[:, 0]
        return self.decoder.memory(features, valid, embedded)

    def _source(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the last map, and the embeddings of the tokens of an input of tokens."""
        stem = () if self.embedding is None else (self.embedding.position,)
        embedded, (features,) = self.backbone.pyramid(x, stem, [-1])
        return self.backbone.tail(features), embedded[0] if embedded else None

    def losses(
        self,
        x: Float[Tensor, "n c h w"],
        boxes: Float[Tensor, "n m 6"],
        masks: UInt8[Tensor, "n m h w"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of a Faster or Mask R-CNN, with torchvision's names; see `TwoStage`."""
        _, stages = self.maps(x)
        detector: Any = self.detector
        losses: dict[str, Tensor] = detector.losses(x, stages, boxes, masks)
        return losses

    def maps(
        self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the stem's maps that are finer than the stages', and the maps of the stages."""
        stem, stages = self.backbone.pyramid(x, self.stem_positions)
        stages[-1] = self.backbone.tail(stages[-1])
        return stem, stages

    def forward(self, x: Float[Tensor, "n c *s"] | Int[Tensor, "n *s"]) -> Any:
        if x.ndim == self.style.ndim + 3 and self.head_spec.task != "detect":
            return self._by_slice(x)
        if self.head_spec.task == "decode":
            memory = self.memory(x)
            return self.decoder.step(first_tokens(memory), memory, self.decoder.start(memory))[0]
        return self.head(x, *self.maps(x))

    def _by_slice(self, x: Float[Tensor, "n c d *s"]) -> Any:
        """Return logits (n, k, d, *s), with every slice along the first dimension predicted
        alone."""
        outputs = self(x.transpose(1, 2).flatten(0, 1))
        single = isinstance(outputs, Tensor)
        logits = tuple(
            output.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
            for output in ((outputs,) if single else outputs)
        )
        return logits[0] if single else logits


def is_two_stage(net: nn.Module) -> TypeGuard["NetworkWithHead"]:
    """Whether a network is a Faster or Mask R-CNN."""
    return isinstance(net, NetworkWithHead) and net.head_spec.two_stage


def without_head(backbone: Backbone, head: Head) -> Backbone:
    """Return the same network and weights as a backbone; see `grammar.backbone.backbone_of`."""
    if isinstance(backbone, Network):
        spec = backbone_of(backbone.spec, head)
        if spec == backbone.spec:
            return backbone
        bare = Network(spec).to(next(backbone.parameters()))
        names = bare.state_dict().keys()
        bare.load_state_dict({k: v for k, v in backbone.state_dict().items() if k in names})
        return bare.train(backbone.training)
    coarsest = max(backbone.strides)
    if head.dilates and coarsest > head.stride:  # type: ignore[operator, union-attr]
        raise UserError(
            f"[head] stride = {head.stride}: {backbone.name} is an external module of stride "  # type: ignore[union-attr]
            f"{coarsest}, which cannot be dilated"
        )
    backbone.reset_head(0)
    backbone.tail = nn.Identity()
    return backbone
