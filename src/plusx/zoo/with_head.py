"""Named networks with a head on their features: those of torchvision, and translators."""

from dataclasses import dataclass, replace

from plusx.grammar.heads import (
    ConvDecoder,
    DeepLab,
    FasterRcnn,
    Fcn,
    Head,
    MaskRcnn,
    TransformerDecoder,
)
from plusx.grammar.model import WithHead
from plusx.grammar.spec import Net
from plusx.zoo.image import IMAGE
from plusx.zoo.sequence import SEQUENCE


@dataclass(frozen=True, kw_only=True)
class HeadedEntry:
    """A network of the zoo with a head; `size` is the size of its images, or the number of tokens.

    `parameters` and `multiply_adds` are counted with torch (`nn.costs`), because heads are not part
    of the language; a test checks them.
    """

    base: str
    head: Head
    num_classes: int
    size: int
    source: str
    parameters: int
    multiply_adds: int

    @property
    def net(self) -> WithHead:
        """The model, with a backbone without a linear head."""
        base = {**IMAGE, **SEQUENCE}[self.base].net
        assert isinstance(base, Net)
        backbone = replace(base, num_classes=0, size=self.size)
        return WithHead(backbone=backbone, head=self.head, num_classes=self.num_classes)

    @property
    def background(self) -> bool:
        """Whether torchvision's weights have an additional first class, the background."""
        return self.head.two_stage


# Trevett's lesson 5 on Multi30k: 5,893 English words, one attention for all blocks
CONVS2S = ConvDecoder(width=512, depth=10, embed=256, dropout=0.25, shared_attention=True)
CONVS2S_SMALL = ConvDecoder(width=192, depth=3, embed=192, dropout=0.2, tied=True)
TRANSFORMER_SMALL = TransformerDecoder(
    width=192, depth=3, heads=4, hidden=768, dropout=0.2, tied=True
)

HEADED: dict[str, HeadedEntry] = {
    name: HeadedEntry(
        base=base,
        head=head,
        num_classes=num_classes,
        size=size,
        source=source,
        parameters=parameters,
        multiply_adds=multiply_adds,
    )
    for name, base, head, num_classes, size, source, parameters, multiply_adds in (
        ("fcn_resnet50", "resnet50", Fcn(auxiliary=True), 21, 520,
         "Long 2014, torchvision", 35_322_218, 142_725_772_800),
        ("fcn_resnet101", "resnet101", Fcn(auxiliary=True), 21, 520,
         "Long 2014, torchvision", 54_314_346, 222_746_867_200),
        ("deeplabv3_resnet50", "resnet50", DeepLab(auxiliary=True), 21, 520,
         "Chen 2017, torchvision", 42_004_074, 168_731_205_888),
        ("deeplabv3_resnet101", "resnet101", DeepLab(auxiliary=True), 21, 520,
         "Chen 2017, torchvision", 60_996_202, 248_752_300_288),
        ("fasterrcnn_resnet50_fpn", "resnet50", FasterRcnn(frozen_norms=True), 90, 800,
         "Ren 2015, torchvision", 41_755_286, 134_379_721_216),
        ("maskrcnn_resnet50_fpn", "resnet50", MaskRcnn(frozen_norms=True), 90, 800,
         "He 2017, torchvision", 44_401_393, 187_586_351_616),
        ("convs2s", "convs2s_encoder", CONVS2S, 5893, 100, "Gehring 2017, in Trevett's lesson 5",
         37_351_173, 3_662_361_600),
        ("convs2s_plain", "convs2s_plain_encoder", replace(CONVS2S, residual=False), 5893, 100,
         "Gehring 2017, the plain twin of convs2s", 37_351_173, 3_662_361_600),
        ("convs2s_small", "convs2s_small_encoder", CONVS2S_SMALL, 4000, 100,
         "Gehring 2017, narrower and less deep", 3_499_936, 280_012_800),
        ("convs2s_small_plain", "convs2s_small_plain_encoder",
         replace(CONVS2S_SMALL, residual=False), 4000, 100,
         "Gehring 2017, the plain twin of convs2s_small", 3_499_936, 280_012_800),
        ("transformer_small", "transformer_small_encoder", TRANSFORMER_SMALL, 4000, 100,
         "Vaswani 2017, narrower and less deep", 4_694_176, 421_017_600),
        ("transformer_small_plain", "transformer_small_plain_encoder",
         replace(TRANSFORMER_SMALL, residual=False), 4000, 100,
         "Vaswani 2017, the plain twin of transformer_small", 4_694_176, 421_017_600),
    )
}  # fmt: skip
