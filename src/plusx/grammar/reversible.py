"""What training holds of a reversible network, by arithmetic."""

from dataclasses import dataclass, replace

from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FLOAT, FeatureShape, LayerContext
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import parse


BODY, FIRST = "norm act conv3s norm act conv3", "conv3s norm act conv3"
SHORTCUT = "avgpool2s2 pad/2"


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


def reversible_bytes(spec: Reversible, batch: int = 1, *, reverses: bool = True) -> int:
    """The most bytes that are held for the backward pass of a batch, in float32.

    Reversing holds what the stem saves, the output of each stage, the input of each unit that
    changes the shape, and while the backward pass goes through a branch, what that branch saves.
    """
    net, one = spec.net(), (1, 1)
    shape = FeatureShape(net.in_channels, (32, 32), one)
    shape = arithmetic.run(shape, parse(net.stem).branch, LayerContext(net, spec.stem_width, one))
    held = shape.saved
    half, everything, peak = FeatureShape(spec.stem_width // 2, shape.size, one), held, held
    for number, (count, width) in enumerate(zip(spec.units, spec.widths, strict=True), 1):
        for j in range(count):
            stride = (2, 2) if j == 0 and number > 1 else one
            changes = width // 2 != half.channels or max(stride) > 1
            context = LayerContext(net, width // 2, stride)
            body = FIRST if number == 1 and j == 0 else BODY
            behind = arithmetic.run(half.without_cost(), parse(body).branch, context)
            second = arithmetic.run(
                replace(behind.without_cost(), is_saved=False),
                parse(BODY).branch,
                replace(context, stride=one),
            )
            everything += behind.saved + second.saved
            if changes:  # both branches are computed again from the unit's input
                entered = 2 * half.nbytes
                inside = entered + behind.saved + second.saved - half.nbytes
            else:  # one branch at a time, beside the stage's output
                entered = 0
                inside = max(behind.saved, second.saved) + 2 * half.nbytes
            peak = max(peak, held + inside)
            half = FeatureShape(width // 2, second.size, one)
            held += entered
        held += 2 * half.nbytes
        everything += 2 * half.nbytes
    tail = arithmetic.run(
        FeatureShape(spec.widths[-1], half.size, one),
        parse(net.tail).branch,
        LayerContext(net, spec.widths[-1], one),
    )
    ends = tail.saved + FLOAT * (spec.widths[-1] + net.num_classes)
    return batch * (max(peak, held + ends) if reverses else everything + ends)
