"""An autoencoder with a residual decoder."""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from plusx.data.batch import Batch
from plusx.data.modality import Modality
from plusx.errors import UserError
from plusx.grammar.arithmetic import FeatureShape, LayerContext
from plusx.grammar.spec import Block
from plusx.nn.block import ResidualBlock
from plusx.nn.init import initialise
from plusx.selfsupervised.method import SelfSupervised, embedding_width
from plusx.tasks.classify import at_least_float32
from plusx.tasks.task import Task


BLOCK = Block(body="conv3 norm act conv3 norm + act")


class Autoencoder(SelfSupervised):
    """The input is reconstructed from its embedding (Hinton and Salakhutdinov 2006): mean squared
    error of normalised pixels.

    The decoder has a residual block for each stage of the network, in the reverse order, each after
    an upsampling to the size before the stage. Raises UserError for inputs that are not images.
    """

    views = 1

    def __init__(self, task: Task, modality: Modality) -> None:
        super().__init__(task, modality)
        if not modality.is_image:
            raise UserError(f"for images, not {modality.inputs}")
        self.decoder = Decoder(task.net, embedding_width(task), modality)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        pixels = at_least_float32(self.decoder(self.embed(batch.inputs)))
        return F.mse_loss(pixels, batch.inputs)


class Decoder(nn.Module):
    """From an embedding to an image, through the sizes and widths of a network's stages."""

    def __init__(self, net: Any, width: int, modality: Modality) -> None:
        super().__init__()
        strides = [(1, 1), *((s, s) if isinstance(s, int) else tuple(s) for s in net.strides)]
        self.sizes = [
            tuple(math.ceil(side / step) for side, step in zip(modality.size, stride))
            for stride in strides
        ]
        widths = [net.widths[0], *net.widths]
        self.start = nn.Linear(width, widths[-1] * math.prod(self.sizes[-1]))
        blocks = []
        for size, fan_in, fan_out in zip(self.sizes[::-1][1:], widths[::-1], widths[::-1][1:]):
            shape = FeatureShape(fan_in, size, (1, 1))
            context = LayerContext(net.style, fan_out, (1, 1))
            blocks.append(ResidualBlock(BLOCK, shape, context, 0.0))
        self.blocks = nn.ModuleList(blocks)
        self.end = nn.Conv2d(widths[0], modality.channels, 3, padding=1)
        initialise(self.blocks)

    def forward(self, embeddings: Float[Tensor, "n width"]) -> Float[Tensor, "n c h w"]:
        x: Tensor = self.start(embeddings).unflatten(1, (-1, *self.sizes[-1]))
        for block, size in zip(self.blocks, self.sizes[::-1][1:]):
            x = block(F.interpolate(x, size=size, mode="nearest"))
        y: Tensor = self.end(x)
        return y
