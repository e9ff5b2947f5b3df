"""Reversible residual networks (Gomez et al. 2017): what was put in follows from what came out.

A unit splits its channels in two halves and adds in turn,

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

so that training keeps what a stage gives and not what happens inside.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.grammar.reversible import ALL, BODY, FIRST, SHORTCUT, Reversible
from plusx.grammar.shapes import Flow, Setting
from plusx.nn.block import Phrase, SidePath, say
from plusx.nn.init import initialise
from plusx.nn.memory import keep, keep_whole, remembering, turn_back
from plusx.nn.network import head, stage_positions


class ReversibleUnit(nn.Module):
    """Two residual branches between the halves of the channels, each before the other's turn.

    Where the unit changes the shape, both halves take a shortcut without weights, and what was put
    in cannot be told from what came out.
    """

    def __init__(self, flow: Flow, setting: Setting, body: str) -> None:
        super().__init__()
        self.f = Phrase(body, flow, setting)
        changed = self.f.flow.channels != flow.channels or max(setting.stride) > 1
        later = Setting(setting.net, setting.width, (1,) * setting.net.ndim)
        self.downsample = SidePath(SHORTCUT, flow, later) if changed else None
        self.g = Phrase(BODY, self.f.flow, later)
        self.flow = self.g.flow
        self.keeps = False  # what is handed on, and the first convolution of each branch

    def forward(
        self, x1: Float[Tensor, "n c *s"], x2: Float[Tensor, "n c *s"]
    ) -> tuple[Float[Tensor, "n d *t"], Float[Tensor, "n d *t"]]:
        skip1, skip2 = (x1, x2) if self.downsample is None else map(self.downsample, (x1, x2))
        f = self.branch(self.f, x2)
        y1 = skip1 + f
        g = self.branch(self.g, y1)
        y2 = skip2 + g
        if self.downsample is None and not self.keeps:
            turn_back(x2, y2, g)
            turn_back(x1, y1, f)
        keep(y1)
        keep(y2)
        return y1, y2

    def branch(self, words: Phrase, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        """F or G."""
        if not self.keeps:
            return words(x)
        first = words.names.index("conv1") + 1
        return say(words, words.names[first:], keep(say(words, words.names[:first], x)))


class ReversibleStage(nn.Sequential):
    """Units in turn, on halves that lie in memory each in one piece."""

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        first, second = x.chunk(2, dim=1)
        halves = first.clone(), second.clone()
        for unit in self:
            halves = unit(*halves)
        y = torch.cat(halves, dim=1)
        return keep_whole(y, halves)


class ReversibleNetwork(nn.Module):
    """A reversible network for small images, as the authors' own code has it.

    A stem in convolution, norm and activation; three stages of pre-activated units, of which the
    first of all is activated by the stem already, and those that begin stages 2 and 3 halve the
    image; norm, activation, mean. Shortcuts average and append zero channels on both sides.

    The last stage is small: it keeps what is handed from unit to unit and half of its convolutions,
    to save time. `reverses` False keeps activations as other networks do, for comparison.
    """

    strides = (1, 2, 4)

    def __init__(
        self,
        name: str,
        said: Reversible,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.plain, self.widths, self.reverses = name, said.widths, True
        self.num_classes, self.in_channels = num_classes, in_channels
        net = said.net(in_channels)
        one = (1, 1)
        begin = Flow(in_channels, (32, 32), one)
        self.stem = Phrase(net.stem, begin, Setting(net, said.stem_width, one))
        half = Flow(said.stem_width // 2, begin.size, one)
        for number, (count, width) in enumerate(zip(said.units, said.widths, strict=True), 1):
            built = []
            for j in range(count):
                stride = (2, 2) if j == 0 and number > 1 else one
                body = FIRST if number == 1 and j == 0 else BODY
                built.append(ReversibleUnit(half, Setting(net, width // 2, stride), body))
                half = built[-1].flow
            self.add_module(f"layer{number}", ReversibleStage(*built))
        for unit in built:
            unit.keeps = True
        last = Flow(self.widths[-1], half.size, one)
        self.tail = Phrase(net.tail, last, Setting(net, self.widths[-1], one))
        self.fc = head(self.widths[-1], num_classes)
        initialise(self, "he")

    def features(
        self, x: Float[Tensor, "n c h w"], out: Sequence[int] | None = None
    ) -> list[Tensor]:
        """The maps at the ends of the stages, or of those at the positions `out`."""
        wanted = stage_positions(out, len(self.widths))
        maps = []
        with remembering(ALL if self.reverses else None):
            x = self.stem(x)
            # halves that are added and taken away again need all the digits there are
            x = x if x.dtype == torch.float64 else x.float()
            for i in range(max(wanted, default=-1) + 1):
                x = getattr(self, f"layer{i + 1}")(x)
                maps.append(x)
        return [maps[i] for i in wanted]

    def embed(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """What the head sees."""
        return self.tail(self.features(x, out=(-1,))[0]).flatten(1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        with remembering(ALL if self.reverses else None):
            y: Tensor = self.fc(self.embed(x))
            return y

    def reset_head(self, num_classes: int) -> None:
        """A new linear head; 0 classes have none."""
        self.num_classes = num_classes
        self.fc = head(self.widths[-1], num_classes).to(next(self.parameters()))
