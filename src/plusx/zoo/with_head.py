"""Networks with a head on their features that are known by a name, torchvision's own."""

from dataclasses import dataclass

from plusx.grammar.heads import DeepLab, FasterRcnn, Fcn, Head, MaskRcnn


@dataclass(frozen=True, kw_only=True)
class WithHead:
    """A network of the zoo, the head on it, how many classes, and the size of its images.

    `background` says that torchvision's weights have one class more, the first, which is nothing.
    """

    base: str
    head: Head
    num_classes: int
    size: int
    source: str
    background: bool = False


HEADED: dict[str, WithHead] = {
    name: WithHead(base=base, head=head, num_classes=21, size=520, source=source)
    for name, base, head, source in (
        ("fcn_resnet50", "resnet50", Fcn(auxiliary=True), "Long 2014, torchvision"),
        ("fcn_resnet101", "resnet101", Fcn(auxiliary=True), "Long 2014, torchvision"),
        ("deeplabv3_resnet50", "resnet50", DeepLab(auxiliary=True), "Chen 2017, torchvision"),
        ("deeplabv3_resnet101", "resnet101", DeepLab(auxiliary=True), "Chen 2017, torchvision"),
    )
} | {
    name: WithHead(
        base="resnet50", head=head, num_classes=90, size=800, source=source, background=True
    )
    for name, head, source in (
        ("fasterrcnn_resnet50_fpn", FasterRcnn(frozen_norms=True), "Ren 2015, torchvision"),
        ("maskrcnn_resnet50_fpn", MaskRcnn(frozen_norms=True), "He 2017, torchvision"),
    )
}
