"""What training holds of a reversible network, by arithmetic."""

from dataclasses import dataclass

from plusx.grammar.memory import Thought
from plusx.grammar.remember import Rule
from plusx.grammar.script import Named
from plusx.grammar.sentence import parse
from plusx.grammar.shapes import Flow, Setting
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.tape import Tape


BODY, FIRST = "norm act conv3s norm act conv3", "conv3s norm act conv3"
SHORTCUT = "avgpool2s2 pad/2"
ALL = Rule(heaviest=2**62)


@dataclass(frozen=True)
class Reversible:
    """A reversible network for small images (Gomez et al. 2017), as `plusx.nn.reversible` has it.

    units: of each stage; widths: channels of each stage, which a unit takes in two halves.
    """

    units: tuple[int, int, int]
    stem_width: int
    widths: tuple[int, int, int]

    def net(self, in_channels: int = 3, num_classes: int = 10) -> Net:
        """What the words mean in this network: its norm, activation and dimensions."""
        blocks = tuple(Stage(block=Block(body=BODY), depth=1, width=width) for width in self.widths)
        return Net(
            stem="conv3 norm act",
            stem_width=self.stem_width,
            stages=blocks,
            tail="norm act pool",
            in_channels=in_channels,
            num_classes=num_classes,
            size=32,
        )


# The authors' own code (renmengye/revnet-public, cifar_configs.py)
REVNET38 = Reversible(units=(3, 3, 3), stem_width=32, widths=(32, 64, 112))
REVNET110 = Reversible(units=(9, 9, 9), stem_width=32, widths=(32, 64, 128))


def reversible_bytes(said: Reversible, batch: int = 1, *, reverses: bool = True) -> int:
    """The most bytes that are held for the backward pass of a batch, in float32."""
    script = _Reversing(said).run()
    return Tape(script, ALL if reverses else None, batch).account.peak


class _Reversing(Thought):
    """A reversible network in thought, step for step as plusx.nn.reversible runs it."""

    def __init__(self, said: Reversible) -> None:
        super().__init__(said.net())
        self.said = said

    def trunk(self, x: Named, flow: Flow) -> tuple[Named, Flow]:
        script, one = self.script, (1, 1)
        flow = Flow(flow.channels // 2, flow.size, one)
        for number, (count, width) in enumerate(zip(self.said.units, self.said.widths), 1):
            halves = [script.call(x.size // 2, [x]) for _ in range(2)]
            for j in range(count):
                stride = (2, 2) if j == 0 and number > 1 else one
                body = FIRST if number == 1 and j == 0 else BODY
                setting = Setting(self.net, width // 2, stride)
                halves, flow = self._unit(body, halves, flow, setting, keeps=number == 3)
            x = script.join(*halves)
            script.keep(x)
            for half in halves:
                script.turn(half, [x])
        return x, Flow(self.said.widths[-1], flow.size, one)

    def _unit(
        self, body: str, halves: list[Named], flow: Flow, setting: Setting, *, keeps: bool
    ) -> tuple[list[Named], Flow]:
        script, later = self.script, Setting(self.net, setting.width, (1, 1))
        changed = setting.width != flow.channels or max(setting.stride) > 1
        skips = list(halves)
        if changed:
            words = parse(SHORTCUT).branch
            skips = [self.say(words, half, flow, later, fresh=None)[0] for half in halves]
        f, out = self._branch(body, halves[1], flow, setting, keeps)
        y1 = script.call(f.size, [skips[0], f])
        g, out = self._branch(BODY, y1, out, later, keeps)
        y2 = script.call(g.size, [skips[1], g])
        if not changed and not keeps:
            script.turn(halves[1], [y2, g], also=g)
            script.turn(halves[0], [y1, f], also=f)
        for y in (y1, y2):
            script.keep(y)
        return [y1, y2], out

    def _branch(
        self, body: str, x: Named, flow: Flow, setting: Setting, keeps: bool
    ) -> tuple[Named, Flow]:
        words = parse(body).branch
        first = next(i for i, word in enumerate(words) if word.kind == "conv") + 1
        x, flow = self.say(words[:first], x, flow, setting)
        if keeps:
            self.script.keep(x)
        return self.say(words[first:], x, flow, setting, fresh=True)
