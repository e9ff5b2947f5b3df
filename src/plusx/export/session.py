"""An ONNX file in place of a network: ONNX Runtime behind torch's interface."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plusx.export.graph import INPUT, MASK_REGIONS, REGIONS
from plusx.export.runtime import open_session
from plusx.nn.with_head import NetworkWithHead


class OnnxNetwork(nn.Module):
    """What a network computes, computed by ONNX Runtime on the CPU, without gradients.

    `described` is the network that a detector's file was exported from, without weights: it says
    what the outputs mean. With two stages its proposals, pooling and suppression run in torch.

    It has as many threads as torch has when it is made. UserError: ONNX Runtime cannot run the
    content. RuntimeError: the extra `onnx` is not installed.
    """

    def __init__(self, content: bytes, described: NetworkWithHead | None = None) -> None:
        super().__init__()
        self.session = open_session(content, torch.get_num_threads())
        self.outputs: list[str] = [each.name for each in self.session.get_outputs()]
        self.detector: Any = None
        if described is None:
            return
        self.head_spec, self.num_classes = described.head_spec, described.num_classes
        if hasattr(described.head, "strides"):
            self.level_strides = described.level_strides
        if described.head_spec.two_stage:
            self.detector = _with_session(described.detector, self)

    def forward(self, x: Tensor) -> Any:
        """One output as a tensor, several as a list; of two stages torchvision's detections."""
        if self.detector is not None:
            placeholders = [x] * (max(self.detector.indices) + 1)
            return self.detector(x, [], placeholders)
        answers = self.run(self.outputs, {INPUT: x})
        return answers[0] if len(answers) == 1 else answers

    def run(self, outputs: Sequence[str], inputs: dict[str, Tensor]) -> list[Tensor]:
        """Only these outputs; nothing is computed that they do not need."""
        import onnxruntime

        feed = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        for needed in self.session.get_inputs():
            if needed.name not in feed:
                sizes = [size if isinstance(size, int) else 1 for size in needed.shape]
                feed[needed.name] = torch.zeros(sizes).numpy()
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        device = next(iter(inputs.values())).device
        answers = self.session.run(list(outputs), feed, options)
        return [torch.from_numpy(answer).to(device) for answer in answers]


class _Pyramid(nn.Module):
    """The feature pyramid's maps; they and the proposal head's outputs come in one run."""

    def __init__(self, net: OnnxNetwork, names: Sequence[str]) -> None:
        super().__init__()
        self.run, self.names = net.run, names
        self.outputs = [name for name in net.outputs if name[-1].isdigit()]

    def forward(self, stages: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        x = next(iter(stages.values()))  # every placeholder is the input
        answers = self.run(self.outputs, {INPUT: x})
        count = len(self.names)
        self.proposals = answers[count : 2 * count], answers[2 * count :]
        return OrderedDict(zip(self.names, answers[:count], strict=True))


class _Proposals(nn.Module):
    def __init__(self, pyramid: _Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.pyramid.proposals


class _Regions(nn.Module):
    """A head on the features of regions."""

    def __init__(self, net: OnnxNetwork, source: str, outputs: Sequence[str]) -> None:
        super().__init__()
        self.run, self.source, self.outputs = net.run, source, outputs

    def forward(self, regions: Tensor) -> Tensor | list[Tensor]:
        answers = self.run(self.outputs, {self.source: regions})
        return answers[0] if len(answers) == 1 else answers


def _with_session(detector: nn.Module, net: OnnxNetwork) -> Any:
    """torchvision's two stages with a session in place of everything that has weights."""
    parts: Any = detector
    names = [str(i) for i in range(len(parts.indices))]
    parts.fpn = _Pyramid(net, [*names, "pool"])
    parts.rpn.head = _Proposals(parts.fpn)
    heads = parts.roi_heads
    heads.box_head = nn.Identity()
    heads.box_predictor = _Regions(net, REGIONS, ["class_logits", "box_deltas"])
    if heads.has_mask():
        heads.mask_head = nn.Identity()
        heads.mask_predictor = _Regions(net, MASK_REGIONS, ["mask_logits"])
    return parts.eval()
