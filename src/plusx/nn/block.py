"""Words attached to a module, and the only residual forward in the package."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from plusx.grammar import shapes
from plusx.grammar.sentence import Word, parse
from plusx.grammar.shapes import Flow, Setting
from plusx.grammar.spec import Block
from plusx.nn.layers import FRESH, build


def attach(
    owner: nn.Module, words: Iterable[Word], flow: Flow, setting: Setting, fresh: bool = False
) -> tuple[tuple[str, ...], Flow]:
    """Add the words to `owner` as conv1, bn1, act1, conv2 ...; return the names and the flow out.

    Counting words of a kind gives torchvision's names, so its ResNets load with no mapping.
    """
    names = []
    for word in words:
        kind = "bn" if word.kind == "norm" and setting.net.norm == "batch" else word.kind
        said = sum(name.rstrip("0123456789") == kind for name, _ in owner.named_children())
        names.append(f"{kind}{said + 1}")
        owner.add_module(names[-1], build(word, flow, setting, fresh))
        flow = shapes.step(flow, word, setting)
        fresh = word.kind in FRESH
    return tuple(names), flow


def say(owner: nn.Module, names: Sequence[str], x: Tensor) -> Tensor:
    """Run the attached words in turn."""
    for name in names:
        x = getattr(owner, name)(x)
    return x


class Phrase(nn.Module):
    """Words said in turn: a tail, or what is said on entry to a stage."""

    def __init__(self, text: str, flow: Flow, setting: Setting) -> None:
        super().__init__()
        self.names, self.flow = attach(self, parse(text).branch, flow, setting)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        return say(self, self.names, x)


class SidePath(nn.Sequential):
    """A shortcut or a gate: numbered words, as torchvision names its `downsample`."""

    def __init__(self, text: str, flow: Flow, setting: Setting) -> None:
        modules = []
        for word in parse(text).branch:
            modules.append(build(word, flow, setting, fresh=False))
            flow = shapes.step(flow, word, setting)
        super().__init__(*modules)


class ResidualBlock(nn.Module):
    """y = F(x) + x, and what the literature made of it: one block for every sentence.

    `drop` is the probability of being dropped in training: the whole block for a batch, with no
    work done (Huang et al. 2016), or row by row.
    """

    def __init__(self, spec: Block, flow: Flow, setting: Setting, drop: float) -> None:
        super().__init__()
        said, net = parse(spec.body), setting.net
        self.merge = said.merge
        self.drop = drop if said.merge == "add" else 0.0
        self.drops_rows = net.drop_mode == "row"
        self.lead, lead = attach(self, said.lead, flow, setting)
        self.branch, y = attach(self, said.branch, lead, setting)
        # the sum may overwrite the branch where nothing else needs its output
        self.overwrites = said.branch[-1].kind == "norm"

        self.projects = said.merge in ("add", "gate") and shapes.projects(flow, y, setting)
        self.downsample: SidePath | None = None
        self.gate: SidePath | None = None
        if said.merge in ("add", "gate"):
            text, start = (spec.shortcut, lead) if self.projects else (spec.identity, flow)
            if parse(text).words:
                self.downsample = SidePath(text, start, setting)
        if said.merge == "gate":
            self.gate = SidePath(spec.gate, flow, setting)
        if said.merge == "concat":
            y = replace(y, channels=flow.channels + y.channels)

        # a dropped block hands on x itself, which others hold
        fresh = said.merge != "none" and not (self.drop and not self.drops_rows)
        one = replace(setting, stride=(1,) * net.ndim)
        self.after, self.flow = attach(self, said.after, y, one, fresh)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n d *t"]:
        y = say(self, self.lead, x)
        skip = x if self.downsample is None else self.downsample(y if self.projects else x)
        if self.dropped():
            return say(self, self.after, skip)
        y = say(self, self.branch, y)
        match self.merge:
            case "add":
                y = self.survive(y)
                overwrites = self.overwrites and y.dtype == torch.result_type(y, skip)
                y = y.add_(skip) if overwrites else y + skip
            case "concat":
                y = torch.cat([skip, y], dim=1)
            case "gate":
                assert self.gate is not None
                t = self.gate(x).sigmoid()
                y = t * y + (1 - t) * skip
        return say(self, self.after, y)

    def dropped(self) -> bool:
        """Whether this batch passes the block by; then no work is done at all."""
        if not self.drop or not self.training or self.drops_rows:
            return False
        return bool(torch.rand(()) < self.drop)

    def survive(self, y: Float[Tensor, "n d *t"]) -> Float[Tensor, "n d *t"]:
        """The branch as stochastic depth leaves it."""
        if not self.drop:
            return y
        if not self.drops_rows:  # Huang et al. 2016, eq. 5: expected in evaluation
            return y if self.training else y * (1 - self.drop)
        if not self.training:
            return y
        kept = torch.rand(len(y), *[1] * (y.ndim - 1), device=y.device) >= self.drop
        return y * kept.to(y.dtype) / (1 - self.drop)
