"""Whether a file computes what the network computes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.export.graph import INPUT, TwoStageParts, example_regions
from plusx.export.session import OnnxNetwork
from plusx.nn.with_head import is_two_stage


TOLERANCE = 1e-4  # of the largest output, or of 1 where that is smaller
NUM_INPUTS = 8


@dataclass(frozen=True)
class Agreement:
    """The largest difference of an output over `inputs` inputs; `largest` is the largest output."""

    error: float
    largest: float
    inputs: int

    @property
    def allowed(self) -> float:
        return TOLERANCE * max(1.0, self.largest)


def example_inputs(sizes: tuple[int, ...], tokens: int = 0, count: int = NUM_INPUTS) -> Tensor:
    """(count, *sizes): normal noise, or token numbers below `tokens`; the same every time."""
    random = torch.Generator().manual_seed(0)
    if tokens:
        return torch.randint(tokens, (count, *sizes), generator=random)
    return torch.randn(count, *sizes, generator=random)


def compare(net: nn.Module, content: bytes, inputs: Tensor) -> Agreement:
    """Run the network and the file on the same inputs: all together, and the first one alone.

    RuntimeError: an output differs by more than is allowed, or where a network classifies, the
    best class is another one although it leads by more than twice that.
    """
    file = OnnxNetwork(content)
    expected_outputs, outputs = [], []
    for batch in (inputs, inputs[:1]):
        arguments = {INPUT: batch}
        module = net
        if is_two_stage(net):
            module = TwoStageParts(net)
            arguments |= example_regions(net, 5)
        with torch.inference_mode():
            expected = module(*arguments.values())
        expected_outputs += [expected] if isinstance(expected, Tensor) else list(expected)
        outputs += file.run(file.outputs, arguments)
    largest = max(float(expected.abs().max()) for expected in expected_outputs)
    pairs = list(zip(outputs, expected_outputs, strict=True))
    error = max(float((output - expected.float()).abs().max()) for output, expected in pairs)
    agreement = Agreement(error, largest, len(inputs))
    if not agreement.error <= agreement.allowed:  # also where it is not a number
        raise RuntimeError(
            "the file does not compute what the network does: outputs differ by "
            f"{agreement.error:.2g}, allowed are {agreement.allowed:.2g}"
        )
    for output, expected in pairs if len(file.outputs) == 1 else []:
        best = expected.topk(min(2, expected.shape[1]), dim=1).values
        clear = best[:, 0] - best[:, -1] > 2 * agreement.allowed
        if bool((output.argmax(1) != expected.argmax(1))[clear].any()):
            raise RuntimeError("the file does not predict the classes that the network predicts")
    return agreement
