"""External networks, which the language cannot describe, with the methods of every `Backbone`.

EXTERNAL maps names to builders, which take the numbers of classes and of input channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.alexnet import AlexNet as TorchvisionAlexNet
from torchvision.models.googlenet import BasicConv2d
from torchvision.models.googlenet import GoogLeNet as TorchvisionGoogLeNet

from plusx.grammar.reversible import REVNET38, REVNET110
from plusx.grammar.spec import Block, Net, Stage
from plusx.nn.network import Backbone, linear_head
from plusx.nn.reversible import ReversibleNetwork


def style(in_channels: int) -> Net:
    """Return a spec with two dimensions, batch norm and ReLU."""
    stage = Stage(block=Block(body="conv3 norm act"), depth=1, width=1)
    return Net(stem="conv3", stem_width=1, stages=(stage,), in_channels=in_channels, num_classes=0)


class AlexNet(Backbone):
    """The one-tower AlexNet of Krizhevsky 2014 ("One weird trick"), in torchvision's form.

    A stage is a convolution with its activation and, in stages 1, 2 and 5, the pooling after it.
    Images have at least 63 pixels per side.
    """

    name = "alexnet"
    widths = (64, 192, 384, 256, 256)
    strides = (8, 16, 16, 16, 32)
    embed_width = 4096

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.style = style(in_channels)
        torchvision_net = TorchvisionAlexNet(num_classes=1)
        layers = list(torchvision_net.features)
        if in_channels != 3:
            layers[0] = nn.Conv2d(in_channels, 64, 11, 4, 2)
        self.layer1 = nn.Sequential(*layers[:3])
        self.layer2 = nn.Sequential(*layers[3:6])
        self.layer3 = nn.Sequential(*layers[6:8])
        self.layer4 = nn.Sequential(*layers[8:10])
        self.layer5 = nn.Sequential(*layers[10:])
        drop1, fc1, act1, drop2, fc2, act2, _ = torchvision_net.classifier
        self.tail = nn.Sequential(
            torchvision_net.avgpool, nn.Flatten(), drop1, fc1, act1, drop2, fc2, act2
        )
        self.fc = linear_head(self.embed_width, num_classes)


class GoogLeNet(Backbone, TorchvisionGoogLeNet):  # type: ignore[misc]
    """GoogLeNet (Szegedy et al. 2015) in torchvision's form: batch norm, no auxiliary heads.

    Module names are torchvision's. A stage ends before the next pooling. Images have at least 15
    pixels per side.
    """

    name = "googlenet"
    widths = (192, 480, 832, 1024)
    strides = (4, 8, 16, 32)
    embed_width = 1024
    STAGES = (
        ("conv1", "maxpool1", "conv2", "conv3"),
        ("maxpool2", "inception3a", "inception3b"),
        ("maxpool3", *(f"inception4{letter}" for letter in "abcde")),
        ("maxpool4", "inception5a", "inception5b"),
    )

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes=1, aux_logits=False, init_weights=False)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.style = style(in_channels)
        if in_channels != 3:
            self.conv1 = BasicConv2d(in_channels, 64, kernel_size=7, stride=2, padding=3)
        self.fc = linear_head(self.embed_width, num_classes)

    def stage(self, index: int, x: Tensor) -> Tensor:
        for name in self.STAGES[index]:
            x = getattr(self, name)(x)
        return x

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1024"]:
        net: Any = self
        y: Tensor = net.dropout(net.avgpool(self.features(x, out=(-1,))[0]).flatten(1))
        return y


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd pixel is added at the right and
    bottom."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d a b"]:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads))


class KerasBlock(nn.Module):
    """A basic block whose convolutions have biases, with a 1 x 1 convolution as shortcut if it
    strides."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(before, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.conv2 = SameConv2d(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-3)
        self.downsample = nn.Sequential(SameConv2d(before, width, 1, 2)) if stride > 1 else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d a b"]:
        skip = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (skip + y).relu()


class KerasResNet8(Backbone):
    """The ResNet-8 of MLPerf Tiny (Banbury et al. 2021) for CIFAR-10, as Keras computes it.

    It is external for its padding ("same", one-sided at stride 2) and Keras's batch-norm epsilon of
    0.001. Its published weights take unscaled pixels from 0 to 255.
    """

    name = "resnet8_keras"
    widths = (16, 32, 64)
    strides = (1, 2, 4)
    embed_width = 64

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.style = style(in_channels)
        self.conv1 = SameConv2d(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.layer1 = nn.Sequential(KerasBlock(16, 16, 1))
        self.layer2 = nn.Sequential(KerasBlock(16, 32, 2))
        self.layer3 = nn.Sequential(KerasBlock(32, 64, 2))
        self.fc = linear_head(self.embed_width, num_classes)

    def run_stem(self, x: Tensor, positions: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        return self.bn1(self.conv1(x)).relu(), []

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 64"]:
        return self.features(x, out=(-1,))[0].mean((2, 3))


# name: builder(num_classes, in_channels)
EXTERNAL: dict[str, Callable[[int, int], Backbone]] = {
    "alexnet": AlexNet,
    "googlenet": GoogLeNet,
    "resnet8_keras": KerasResNet8,
    "revnet38": partial(ReversibleNetwork, "revnet38", REVNET38),
    "revnet110": partial(ReversibleNetwork, "revnet110", REVNET110),
}
