"""Named networks with a head on their features, those of torchvision."""

from dataclasses import dataclass, replace

from plusx.grammar.heads import DeepLab, FasterRcnn, Fcn, Head, MaskRcnn
from plusx.grammar.model import WithHead
from plusx.grammar.spec import Net
from plusx.zoo.image import IMAGE


@dataclass(frozen=True, kw_only=True)
class HeadedEntry:
    """A network of the zoo with a head; `size` is the size of its images.

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
        base = IMAGE[self.base].net
        assert isinstance(base, Net)
        backbone = replace(base, num_classes=0, size=self.size)
        return WithHead(backbone=backbone, head=self.head, num_classes=self.num_classes)

    @property
    def background(self) -> bool:
        """Whether torchvision's weights have an additional first class, the background."""
        return self.head.two_stage


HEADED: dict[str, HeadedEntry] = {
    name: HeadedEntry(
        base=base,
        head=head,
        num_classes=21 if size == 520 else 90,
        size=size,
        source=source,
        parameters=parameters,
        multiply_adds=multiply_adds,
    )
    for name, base, head, size, source, parameters, multiply_adds in (
        ("fcn_resnet50", "resnet50", Fcn(auxiliary=True), 520, "Long 2014, torchvision",
         35_322_218, 142_725_772_800),
        ("fcn_resnet101", "resnet101", Fcn(auxiliary=True), 520, "Long 2014, torchvision",
         54_314_346, 222_746_867_200),
        ("deeplabv3_resnet50", "resnet50", DeepLab(auxiliary=True), 520, "Chen 2017, torchvision",
         42_004_074, 168_731_205_888),
        ("deeplabv3_resnet101", "resnet101", DeepLab(auxiliary=True), 520, "Chen 2017, torchvision",
         60_996_202, 248_752_300_288),
        ("fasterrcnn_resnet50_fpn", "resnet50", FasterRcnn(frozen_norms=True), 800,
         "Ren 2015, torchvision", 41_755_286, 134_379_721_216),
        ("maskrcnn_resnet50_fpn", "resnet50", MaskRcnn(frozen_norms=True), 800,
         "He 2017, torchvision", 44_401_393, 187_586_351_616),
    )
}  # fmt: skip
