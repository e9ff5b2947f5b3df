"""What training holds for the backward pass, by arithmetic on a spec: no torch.

A spec is run in thought: every word makes values of so many bytes, and saves what PyTorch's own
formulas save of them. Then the backward pass goes over them in reverse, and the largest sum of
bytes held at one time is the answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import gcd, prod

from plusx.grammar import shapes
from plusx.grammar.remember import Rule
from plusx.grammar.script import FLOAT, INDEX, Named, Script
from plusx.grammar.sentence import Word, parse
from plusx.grammar.shapes import Flow, Setting, each_dimension
from plusx.grammar.spec import Block, Net
from plusx.grammar.tape import Tape


OVERWRITING = ("relu", "silu")
# words whose output nothing else needs: an activation may overwrite it (as in plusx.nn.layers)
FRESH = {"conv", "norm", "se", "eca", "cbam", "scale", "gate", "fc", "top", "embed", "pos"}


class Thought:
    """A network in thought: its words on a script."""

    def __init__(self, net: Net) -> None:
        self.net, self.script = net, Script()

    def run(self) -> Script:
        """Forward through the whole network and its loss."""
        net, script, one = self.net, self.script, (1,) * self.net.ndim
        flow = Flow(net.in_channels, each_dimension(net.size, net.ndim), one)
        x = script.there(flow.channels * prod(flow.size), moves=False)
        if net.stem.startswith("embed"):
            x = script.there(prod(flow.size), width=INDEX, moves=False)
        x, flow = self.say(parse(net.stem).branch, x, flow, Setting(net, net.stem_width, one))
        x, flow = self.trunk(x, flow)
        x, flow = self.say(parse(net.tail).branch, x, flow, Setting(net, flow.channels, one))
        if net.num_classes:
            script.save(x)
            script.save_small(net.num_classes)
        return script

    def trunk(self, x: Named, flow: Flow) -> tuple[Named, Flow]:
        """The stages."""
        net, script, one = self.net, self.script, (1,) * self.net.ndim
        for stage in net.stages:
            setting = Setting(net, flow.channels, one)
            x, flow = self.say(parse(stage.enter).branch, x, flow, setting)
            for j, block in enumerate(stage.blocks):
                stride = each_dimension(stage.stride, net.ndim) if j == 0 else one
                x, flow = self.block(block, x, flow, Setting(net, stage.width, stride))
                script.block(x)
        return x, flow

    def say(
        self,
        words: Sequence[Word],
        x: Named,
        flow: Flow,
        setting: Setting,
        fresh: bool | None = False,
    ) -> tuple[Named, Flow]:
        """Words in turn. `fresh` None: nothing is ever overwritten, as in a shortcut."""
        for word in words:
            out = shapes.step(flow, word, setting)
            x = self.word(word, x, flow, out, setting, bool(fresh))
            flow = out
            fresh = None if fresh is None else word.kind in FRESH
        return x, flow

    def block(self, spec: Block, x: Named, flow: Flow, setting: Setting) -> tuple[Named, Flow]:
        """One block, step for step as plusx.nn.block runs it."""
        said, script, net = parse(spec.body), self.script, self.net
        y, lead = self.say(said.lead, x, flow, setting)
        out = shapes.run(lead, said.branch, setting)
        skip = x
        projects = said.merge in ("add", "gate") and shapes.projects(flow, out, setting)
        if said.merge in ("add", "gate"):
            text, start, begin = (spec.shortcut, y, lead) if projects else (spec.identity, x, flow)
            skip, _ = self.say(parse(text).branch, start, begin, setting, fresh=None)
        y, after = self.say(said.branch, y, lead, setting)
        if said.merge == "add":
            if net.drop_path and net.drop_mode == "row":
                y = script.call(y.size, [y], steps=2)
            if said.branch[-1].kind in ("norm", "conv"):
                y = script.overwrite(y, [skip])
            else:
                y = script.call(y.size, [y, skip])
        elif said.merge == "concat":
            y = script.join(skip, y)
            after = replace(after, channels=flow.channels + after.channels)
        elif said.merge == "gate":
            gate, _ = self.say(parse(spec.gate).branch, x, flow, setting, fresh=None)
            gate = self.squashed(gate)
            kept = self.product(gate, y)
            rest = self.product(script.call(gate.size, [gate]), skip)
            y = script.call(kept.size, [kept, rest])
        one = replace(setting, stride=(1,) * net.ndim)
        fresh = said.merge != "none" and not (net.drop_path and net.drop_mode == "batch")
        return self.say(said.after, y, after, one, fresh)

    def squashed(self, x: Named) -> Named:
        """A sigmoid, whose backward pass needs what it gives."""
        y = self.script.call(x.size, [x])
        self.script.save(y)
        return y

    def product(self, a: Named, b: Named) -> Named:
        """A product of two values, whose backward pass needs both."""
        size = max(a.size, b.size)
        y = self.script.call(size, [a, b])
        self.script.save(*([b] if a.moves else []), *([a] if b.moves else []))
        return y

    def word(
        self, word: Word, x: Named, flow: Flow, out: Flow, setting: Setting, fresh: bool
    ) -> Named:
        """What one word makes of a value, and what it saves."""
        script, c, positions = self.script, flow.channels, prod(flow.size)
        numbers = out.channels * prod(out.size)
        size = numbers * FLOAT
        match word.kind:
            case "conv":
                kernel = each_dimension(word.kernel, setting.net.ndim)
                groups = word.groups or c
                return self.script.convolve(x, c // groups * prod(kernel), numbers)
            case "norm":
                return self.normed(x, c, positions)
            case "act":
                return self.activated(x, fresh)
            case "maxpool" | "avgpool" | "blur":
                return self.pooled(word, x, flow, out, setting)
            case "pool":
                if word.value and word.value > 1:
                    script.save(x)
                return script.there(numbers)
            case "top":  # all positions in order are there until the first of them are known
                script.save(x)
                script.pass_by(positions * c, width=INDEX)
                script.save_small(numbers, width=INDEX)
                return script.there(numbers)
            case "fc":
                script.save(x)
                return script.there(numbers)
            case "drop":
                noise = script.there(numbers, moves=False)
                y = script.call(size, [x, noise])
                if x.moves:
                    script.save(noise)
                return y
            case "se":
                return self.squeezed(word, x, c)
            case "eca":
                mean = script.there(c)
                gate = self.squashed(self.script.convolve(mean, shapes.eca_kernel(c), c))
                return self.product(x, gate)
            case "cbam":
                return self.convolutional_gate(word, x, c, positions)
            case "attn":
                return self.attended(word, x, flow, out, setting)
            case "scale":
                if word.is_constant:
                    return script.call(size, [x])
                y = script.call(size, [x])
                script.save(x)
                return y
            case "gate":
                gate = self.squashed(self.script.convolve(x, c, numbers))
                return self.product(x, script.call(size, [gate]))
            case "pad" | "pos":
                return script.call(size, [x])
            case "embed":
                script.save(x)
                return script.there(numbers)
        raise AssertionError(word)

    def normed(self, x: Named, channels: int, positions: int) -> Named:
        script = self.script
        y = script.call(x.size, [x])
        script.save(x)
        match self.net.norm:
            case "batch":
                script.save_small(2 * channels, an_image=False)
            case "layer":
                script.save_small(2 * positions)
            case "group":
                script.save_small(2 * gcd(32, channels))
            case "instance":
                script.save_small((4 if self.net.affine else 2) * channels)
        return y

    def activated(self, x: Named, fresh: bool) -> Named:
        """Some activations save what they give, others what they are given."""
        script, act = self.script, self.net.act
        if act == "silu" and fresh:
            script.save(script.call(x.size, [x]))
            return script.overwrite(x)
        if act in OVERWRITING and fresh:
            y = script.overwrite(x)
        else:
            y = script.call(x.size, [x])
        script.save(x if act in ("gelu", "silu", "leaky") else y)
        return y

    def pooled(self, word: Word, x: Named, flow: Flow, out: Flow, setting: Setting) -> Named:
        script, (kernel, stride) = self.script, shapes.pooling(word, setting)
        numbers = out.channels * prod(out.size)
        size = numbers * FLOAT
        if word.stride is None and max(stride) == 1:
            return x
        if word.kind == "avgpool":
            y = script.call(size, [x])
            script.save(x)
            return y
        if word.kind == "blur":
            pads = [n + 2 * p for n, p in zip(flow.size, shapes.padding(kernel))]
            padded = script.call(flow.channels * prod(pads) * FLOAT, [x])
            script.save(x)
            return self.script.convolve(padded, prod(kernel), numbers)
        y = script.call(size, [x], dear=True)
        places = script.call(numbers * INDEX, [x], dear=True)
        script.save(x, places)
        return y

    def squeezed(self, word: Word, x: Named, channels: int) -> Named:
        script, hidden = self.script, channels // int(word.value or 1)
        inner = self.script.convolve(script.there(channels), channels, hidden)
        inner = script.call(inner.size, [inner])
        script.save(inner)
        gate = self.squashed(self.script.convolve(inner, hidden, channels))
        return self.product(x, gate)

    def convolutional_gate(self, word: Word, x: Named, channels: int, positions: int) -> Named:
        """CBAM: channels by mean and maximum, then positions likewise."""
        script, hidden = self.script, channels // int(word.value or 1)
        mean, peak = script.there(channels), script.there(channels)
        script.save(x, peak)
        both = []
        for summary in (mean, peak):
            inner = self.script.convolve(summary, channels, hidden)
            inner = script.call(inner.size, [inner])
            script.save(inner)
            both.append(self.script.convolve(inner, hidden, channels))
        x = self.product(x, self.squashed(script.call(both[0].size, both)))
        highest = script.there(positions)
        script.save(x, highest)
        summary = script.join(highest, script.there(positions))
        spatial = self.script.convolve(summary, 2 * 7**self.net.ndim, positions)
        normed = script.call(spatial.size, [spatial])
        script.save(spatial)
        return self.product(x, self.squashed(normed))

    def attended(self, word: Word, x: Named, flow: Flow, out: Flow, setting: Setting) -> Named:
        """Queries, keys and values, their products' shares, and the result."""
        script, positions, heads = self.script, prod(flow.size), int(word.value or 1)
        joined = self.script.convolve(x, flow.channels, 3 * out.channels * positions)
        script.save(joined)
        y = script.there(out.channels * positions)
        script.save(y)
        script.save_small(heads * positions)
        return y


@lru_cache(maxsize=64)
def script_of(net: Net) -> Script:
    """What the network does in training."""
    return Thought(net).run()


def saved_bytes(net: Net, rule: Rule | None = None, batch: int = 1) -> int:
    """The most bytes that are held for the backward pass of a batch, in float32.

    Counted as `plusx.nn.saved.SavedBytes` counts: every tensor once, parameters and buffers not.
    """
    return Tape(script_of(net), rule, batch).account.peak
