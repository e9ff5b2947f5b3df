"""Memory of training a reversible network, by arithmetic."""

from dataclasses import dataclass, replace

from plusx.grammar import arithmetic
from plusx.grammar.arithmetic import FLOAT, FeatureShape, LayerContext, input_shape
from plusx.grammar.spec import Block, Net, Stage
from plusx.grammar.words import parse


BODY, FIRST = "norm act conv3s norm act conv3", "conv3s norm act conv3"
SHORTCUT = "avgpool2s2 pad/2"


@dataclass(frozen=True)
class Reversible:
    """A reversible network for small images (Gomez et al. 2017), built by `plusx.nn.reversible`.

    units: per stage; widths: channels of each stage, of which a unit takes two halves.
    """

    units: tuple[int, int, int]
    stem_width: int
    widths: tuple[int, int, int]

    def net(self, in_channels: int = 3, num_classes: int = 10) -> Net:
        """Return a spec with the norm, activation and dimensions of this network."""
        stages = tuple(Stage(block=Block(body=BODY), depth=1, width=width) for width in self.widths)
        return Net(
            stem="conv3 norm act",
            stem_width=self.stem_width,
            stages=stages,
            tail="norm act pool",
            in_channels=in_channels,
            num_classes=num_classes,
            size=32,
        )


# the authors' code (renmengye/revnet-public, cifar_configs.py)
REVNET38 = Reversible(units=(3, 3, 3), stem_width=32, widths=(32, 64, 112))
REVNET110 = Reversible(units=(9, 9, 9), stem_width=32, widths=(32, 64, 128))


def reversible_bytes(spec: Reversible, batch: int = 1, *, reverses: bool = True) -> int:
    """Return the peak number of bytes held for the backward pass of a batch, in float32.

    With `reverses`: what the stem saves, the output of each stage, the input of each unit that
    changes the shape, and during the backward pass of a branch what that branch saves.
    """
    net, one = spec.net(), (1, 1)
    stem = LayerContext.unstrided(net, spec.stem_width)
    shape = arithmetic.run(input_shape(net), parse(net.stem).branch, stem)
    held = shape.saved
    half, all_saved, peak = (FeatureShape(spec.stem_width // 2, shape.size, one), held, held)
    for number, (count, width) in enumerate(zip(spec.units, spec.widths, strict=True), 1):
        for j in range(count):
            stride = (2, 2) if j == 0 and number > 1 else one
            changes_shape = width // 2 != half.channels or max(stride) > 1
            context = LayerContext(net, width // 2, stride)
            body = FIRST if number == 1 and j == 0 else BODY
            after_f = arithmetic.run(half.without_cost(), parse(body).branch, context)
            after_g = arithmetic.run(
                replace(after_f.without_cost(), is_saved=False),
                parse(BODY).branch,
                replace(context, stride=one),
            )
            all_saved += after_f.saved + after_g.saved
            if changes_shape:  # both branches are recomputed from the unit's input
                unit_input = 2 * half.nbytes
                inside = unit_input + after_f.saved + after_g.saved - half.nbytes
            else:  # one branch at a time, in addition to the stage's output
                unit_input = 0
                inside = max(after_f.saved, after_g.saved) + 2 * half.nbytes
            peak = max(peak, held + inside)
            half = FeatureShape(width // 2, after_g.size, one)
            held += unit_input
        held += 2 * half.nbytes
        all_saved += 2 * half.nbytes
    tail = arithmetic.run(
        FeatureShape(spec.widths[-1], half.size, one),
        parse(net.tail).branch,
        LayerContext.unstrided(net, spec.widths[-1]),
    )
    ends = tail.saved + FLOAT * (spec.widths[-1] + net.num_classes)
    return batch * (max(peak, held + ends) if reverses else all_saved + ends)
