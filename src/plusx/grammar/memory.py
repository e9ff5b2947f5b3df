"""What training holds for the backward pass, by arithmetic on a spec: no torch.

A spec is run in thought: every word makes values of so many bytes, and saves what PyTorch's own
formulas save of them. Then the backward pass goes over them in reverse, and the largest sum of
bytes held at one time is the answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod

from plusx.grammar import shapes
from plusx.grammar.remember import Rule
from plusx.grammar.sentence import Word, parse
from plusx.grammar.shapes import Flow, Setting, each_dimension
from plusx.grammar.spec import Block, Net
from plusx.grammar.tape import FLOAT, INDEX, Held, Tape, Value


OVERWRITING = ("relu", "silu")
# words whose output nothing else needs: an activation may overwrite it (as in plusx.nn.layers)
FRESH = {"conv", "norm", "se", "eca", "cbam", "scale", "gate", "fc", "top", "embed", "pos"}


class Thought:
    """A network in thought: its words on a tape."""

    def __init__(self, net: Net, rule: Rule | None, batch: int) -> None:
        self.net, self.tape = net, Tape(rule, batch)
        self.rule = rule or Rule()
        self.works: set[int] = set()  # multiply-adds a value of the convolutions that there are

    def run(self) -> Tape:
        """Forward through the whole network and its loss."""
        net, tape, one = self.net, self.tape, (1,) * self.net.ndim
        flow = Flow(net.in_channels, each_dimension(net.size, net.ndim), one)
        x = tape.there(flow.channels * prod(flow.size), moves=False)
        if net.stem.startswith("embed"):
            x = tape.there(prod(flow.size), width=INDEX, moves=False)
        x, flow = self.say(parse(net.stem).branch, x, flow, Setting(net, net.stem_width, one))
        x, flow = self.trunk(x, flow)
        x, flow = self.say(parse(net.tail).branch, x, flow, Setting(net, flow.channels, one))
        if net.num_classes:
            tape.save(x)
            tape.save_small(net.num_classes)
        return tape

    def trunk(self, x: Value, flow: Flow) -> tuple[Value, Flow]:
        """The stages."""
        net, tape, one, number = self.net, self.tape, (1,) * self.net.ndim, 0
        for stage in net.stages:
            setting = Setting(net, flow.channels, one)
            x, flow = self.say(parse(stage.enter).branch, x, flow, setting)
            for j, block in enumerate(stage.blocks):
                stride = each_dimension(stage.stride, net.ndim) if j == 0 else one
                x, flow = self.block(block, x, flow, Setting(net, stage.width, stride))
                if number in self.rule.blocks:
                    tape.keep(x)
                number += 1
        return x, flow

    def say(
        self,
        words: Sequence[Word],
        x: Value,
        flow: Flow,
        setting: Setting,
        fresh: bool | None = False,
    ) -> tuple[Value, Flow]:
        """Words in turn. `fresh` None: nothing is ever overwritten, as in a shortcut."""
        for word in words:
            out = shapes.step(flow, word, setting)
            x = self.word(word, x, flow, out, setting, bool(fresh))
            flow = out
            fresh = None if fresh is None else word.kind in FRESH
        return x, flow

    def block(self, spec: Block, x: Value, flow: Flow, setting: Setting) -> tuple[Value, Flow]:
        """One block, step for step as plusx.nn.block runs it."""
        said, tape, net = parse(spec.body), self.tape, self.net
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
                y = tape.call(y.size, [y], steps=2)
            if said.branch[-1].kind in ("norm", "conv"):
                y = tape.overwrite(y, [skip])
            else:
                y = tape.call(y.size, [y, skip])
        elif said.merge == "concat":
            y = tape.join(skip, y)
            after = replace(after, channels=flow.channels + after.channels)
        elif said.merge == "gate":
            gate, _ = self.say(parse(spec.gate).branch, x, flow, setting, fresh=None)
            gate = self.squashed(gate)
            kept = self.product(gate, y)
            rest = self.product(tape.call(gate.size, [gate]), skip)
            y = tape.call(kept.size, [kept, rest])
        one = replace(setting, stride=(1,) * net.ndim)
        fresh = said.merge != "none" and not (net.drop_path and net.drop_mode == "batch")
        return self.say(said.after, y, after, one, fresh)

    def squashed(self, x: Value) -> Value:
        """A sigmoid, whose backward pass needs what it gives."""
        y = self.tape.call(x.size, [x])
        self.tape.save(y)
        return y

    def product(self, a: Value, b: Value) -> Value:
        """A product of two values, whose backward pass needs both."""
        size = max(a.size, b.size)
        y = self.tape.call(size, [a, b])
        self.tape.save(*([b] if a.moves else []), *([a] if b.moves else []))
        return y

    def convolved(self, x: Value, work: int, numbers: int) -> Value:
        """A convolution of so many multiply-adds a number that it gives."""
        tape, rule = self.tape, self.rule
        self.works.add(work)
        if tape.rule is not None and work <= rule.heaviest:
            size = numbers * FLOAT * tape.batch
            dear = work > rule.lightest
            y = tape.call(size, [x], steps=0, dear=dear, work=work * numbers)
        else:
            y = tape.there(numbers)
        tape.save(x)
        return y

    def word(
        self, word: Word, x: Value, flow: Flow, out: Flow, setting: Setting, fresh: bool
    ) -> Value:
        """What one word makes of a value, and what it saves."""
        tape, c, positions = self.tape, flow.channels, prod(flow.size)
        numbers = out.channels * prod(out.size)
        size = numbers * FLOAT * tape.batch
        match word.kind:
            case "conv":
                kernel = each_dimension(word.kernel, setting.net.ndim)
                groups = word.groups or c
                return self.convolved(x, c // groups * prod(kernel), numbers)
            case "norm":
                return self.normed(x, c, positions)
            case "act":
                return self.activated(x, fresh)
            case "maxpool" | "avgpool" | "blur":
                return self.pooled(word, x, flow, out, setting)
            case "pool":
                if word.value and word.value > 1:
                    tape.save(x)
                return tape.there(numbers)
            case "top":  # all positions in order are there until the first of them are known
                order = Held(tape.account, x.size // FLOAT * INDEX, counted=True)
                tape.save_small(numbers, width=INDEX)
                del order
                return tape.there(numbers)
            case "fc":
                tape.save(x)
                return tape.there(numbers)
            case "drop":
                noise = tape.there(numbers, moves=False)
                y = tape.call(size, [x, noise])
                if x.moves:
                    tape.save(noise)
                return y
            case "se":
                return self.squeezed(word, x, c)
            case "eca":
                mean = tape.there(c)
                gate = self.squashed(self.convolved(mean, shapes.eca_kernel(c), c))
                return self.product(x, gate)
            case "cbam":
                return self.convolutional_gate(word, x, c, positions)
            case "attn":
                return self.attended(word, x, flow, out, setting)
            case "scale":
                if word.is_constant:
                    return tape.call(size, [x])
                y = tape.call(size, [x])
                tape.save(x)
                return y
            case "gate":
                gate = self.squashed(self.convolved(x, c, numbers))
                return self.product(x, tape.call(size, [gate]))
            case "pad" | "pos":
                return tape.call(size, [x])
            case "embed":
                tape.save(x)
                return tape.there(numbers)
        raise AssertionError(word)

    def normed(self, x: Value, channels: int, positions: int) -> Value:
        tape = self.tape
        y = tape.call(x.size, [x])
        tape.save(x)
        match self.net.norm:
            case "batch":
                tape.save_small(2 * channels, an_image=False)
            case "layer":
                tape.save_small(2 * positions)
            case "group":
                tape.save_small(2 * gcd(32, channels))
            case "instance":
                tape.save_small((4 if self.net.affine else 2) * channels)
        return y

    def activated(self, x: Value, fresh: bool) -> Value:
        """Some activations save what they give, others what they are given."""
        tape, act = self.tape, self.net.act
        if act == "silu" and fresh:
            tape.save(tape.call(x.size, [x]))
            return tape.overwrite(x)
        if act in OVERWRITING and fresh:
            y = tape.overwrite(x)
        else:
            y = tape.call(x.size, [x])
        tape.save(x if act in ("gelu", "silu") else y)
        return y

    def pooled(self, word: Word, x: Value, flow: Flow, out: Flow, setting: Setting) -> Value:
        tape, (kernel, stride) = self.tape, shapes.pooling(word, setting)
        numbers = out.channels * prod(out.size)
        size = numbers * FLOAT * tape.batch
        if word.stride is None and max(stride) == 1:
            return x
        if word.kind == "avgpool":
            y = tape.call(size, [x])
            tape.save(x)
            return y
        if word.kind == "blur":
            pads = [n + 2 * p for n, p in zip(flow.size, shapes.padding(kernel))]
            padded = tape.call(flow.channels * prod(pads) * FLOAT * tape.batch, [x])
            tape.save(x)
            return self.convolved(padded, prod(kernel), numbers)
        y = tape.call(size, [x], dear=True)
        places = tape.call(numbers * INDEX * tape.batch, [x], dear=True)
        tape.save(x, places)
        return y

    def squeezed(self, word: Word, x: Value, channels: int) -> Value:
        tape, hidden = self.tape, channels // int(word.value or 1)
        inner = self.convolved(tape.there(channels), channels, hidden)
        inner = tape.call(inner.size, [inner])
        tape.save(inner)
        gate = self.squashed(self.convolved(inner, hidden, channels))
        return self.product(x, gate)

    def convolutional_gate(self, word: Word, x: Value, channels: int, positions: int) -> Value:
        """CBAM: channels by mean and maximum, then positions likewise."""
        tape, hidden = self.tape, channels // int(word.value or 1)
        mean, peak = tape.there(channels), tape.there(channels)
        tape.save(x, peak)
        both = []
        for summary in (mean, peak):
            inner = self.convolved(summary, channels, hidden)
            inner = tape.call(inner.size, [inner])
            tape.save(inner)
            both.append(self.convolved(inner, hidden, channels))
        x = self.product(x, self.squashed(tape.call(both[0].size, both)))
        highest = tape.there(positions)
        tape.save(x, highest)
        summary = tape.join(highest, tape.there(positions))
        spatial = self.convolved(summary, 2 * 7**self.net.ndim, positions)
        normed = tape.call(spatial.size, [spatial])
        tape.save(spatial)
        return self.product(x, self.squashed(normed))

    def attended(self, word: Word, x: Value, flow: Flow, out: Flow, setting: Setting) -> Value:
        """Queries, keys and values, their products' shares, and the result."""
        tape, positions, heads = self.tape, prod(flow.size), int(word.value or 1)
        joined = self.convolved(x, flow.channels, 3 * out.channels * positions)
        tape.save(joined)
        y = tape.there(out.channels * positions)
        tape.save(y)
        tape.save_small(heads * positions)
        return y


def saved_bytes(net: Net, rule: Rule | None = None, batch: int = 1) -> int:
    """The most bytes that are held for the backward pass of a batch, in float32.

    Counted as `plusx.nn.memory.SavedBytes` counts: every tensor once, parameters and buffers not.
    """
    tape = Thought(net, rule, batch).run()
    tape.backward()
    return tape.account.peak
