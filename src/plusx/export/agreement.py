"""Comparison of the outputs of an ONNX file with those of its network in torch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plusx.export.graph import INPUT, TwoStageParts, example_regions
from plusx.export.session import OnnxNetwork
from plusx.nn.with_head import is_two_stage


TOLERANCE = 1e-4  # relative to the largest output, or to 1 if that is larger
NUM_INPUTS = 8


@dataclass(frozen=True)
class Agreement:
    """The largest absolute difference and the largest absolute output, over `inputs` inputs."""

    error: float
    largest: float
    inputs: int

    @property
    def allowed(self) -> float:
        """The largest difference that is allowed."""
        return TOLERANCE * max(1.0, self.largest)


def example_inputs(sizes: tuple[int, ...], tokens: int = 0, count: int = NUM_INPUTS) -> Tensor:
    """Return inputs (count, *sizes) from a fixed seed: normal noise, or ids below `tokens`."""
    random = torch.Generator().manual_seed(0)
    if tokens:
        return torch.randint(tokens, (count, *sizes), generator=random)
    return torch.randn(count, *sizes, generator=random)


def compare(net: nn.Module, content: bytes, inputs: Tensor) -> Agreement:
    """Compare network and file on a batch of inputs, and on the first input alone.

    Raises RuntimeError if an output differs by more than `Agreement.allowed`, or if a classifier's
    best class differs although its lead is more than twice that.
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
    if not agreement.error <= agreement.allowed:  # also if it is NaN
        raise RuntimeError(
            f"the outputs of the file differ from the network's by {agreement.error:.2g}; "
            f"{agreement.allowed:.2g} is allowed"
        )
    for output, expected in pairs if len(file.outputs) == 1 else []:
        best = expected.topk(min(2, expected.shape[1]), dim=1).values
        decided = best[:, 0] - best[:, -1] > 2 * agreement.allowed
        if bool((output.argmax(1) != expected.argmax(1))[decided].any()):
            raise RuntimeError("the file does not predict the classes that the network predicts")
    return agreement
