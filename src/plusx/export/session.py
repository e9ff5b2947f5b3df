"""A torch module that runs an ONNX file by ONNX Runtime."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plusx.export.graph import INPUT, MASK_REGIONS, REGIONS
from plusx.export.runtime import open_session
from plusx.nn.with_head import NetworkWithHead


class OnnxNetwork(nn.Module):
    """An exported network, run by ONNX Runtime on the CPU without gradients.

    `template` is the exported network without weights, for files of detectors and segmenters: it
    defines their outputs. For two-stage detectors, proposals, pooling and non-maximum suppression
    run in torch. The session uses `torch.get_num_threads()` threads.
    Raises UserError if ONNX Runtime cannot run the content, RuntimeError if the extra `onnx` is not
    installed.
    """

    def __init__(self, content: bytes, template: NetworkWithHead | None = None) -> None:
        super().__init__()
        self.session = open_session(content, torch.get_num_threads())
        self.outputs: list[str] = [node.name for node in self.session.get_outputs()]
        self.detector: Any = None
        if template is None:
            return
        self.head_spec, self.num_classes = template.head_spec, template.num_classes
        if hasattr(template.head, "strides"):
            self.level_strides = template.level_strides
        if template.head_spec.two_stage:
            self.detector = _with_session(template.detector, self)

    def forward(self, x: Tensor) -> Any:
        """Return the output, a list of several outputs, or torchvision's detections."""
        if self.detector is not None:
            placeholders = [x] * (max(self.detector.indices) + 1)
            return self.detector(x, [], placeholders)
        arrays = self.session.run(None, {INPUT: x.contiguous().numpy(force=True)})
        values = [torch.from_numpy(array).to(x.device) for array in arrays]
        return values[0] if len(values) == 1 else values

    def run(self, outputs: Sequence[str], inputs: dict[str, Tensor]) -> list[Tensor]:
        """Compute only these outputs."""
        import onnxruntime

        feed = {name: value.detach().cpu().contiguous().numpy() for name, value in inputs.items()}
        for node in self.session.get_inputs():
            if node.name not in feed:  # not used by these outputs
                sizes = [size if isinstance(size, int) else 1 for size in node.shape]
                feed[node.name] = torch.zeros(sizes).numpy()
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        device = next(iter(inputs.values())).device
        arrays = self.session.run(list(outputs), feed, options)
        return [torch.from_numpy(array).to(device) for array in arrays]


class _Pyramid(nn.Module):
    """Computes the pyramid's maps, and in the same run the outputs of the proposal head."""

    def __init__(self, net: OnnxNetwork, names: Sequence[str]) -> None:
        super().__init__()
        self.run, self.names = net.run, names
        self.outputs = [name for name in net.outputs if name[-1].isdigit()]

    def forward(self, stages: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        x = next(iter(stages.values()))  # every placeholder is the input
        values = self.run(self.outputs, {INPUT: x})
        count = len(self.names)
        self.proposals = values[count : 2 * count], values[2 * count :]
        return OrderedDict(zip(self.names, values[:count], strict=True))


class _Proposals(nn.Module):
    def __init__(self, pyramid: _Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.pyramid.proposals


class _Regions(nn.Module):
    """A head on the pooled features of regions."""

    def __init__(self, net: OnnxNetwork, source: str, outputs: Sequence[str]) -> None:
        super().__init__()
        self.run, self.source, self.outputs = net.run, source, outputs

    def forward(self, regions: Tensor) -> Tensor | list[Tensor]:
        values = self.run(self.outputs, {self.source: regions})
        return values[0] if len(values) == 1 else values


def _with_session(detector: Any, net: OnnxNetwork) -> Any:
    """Replace every module with weights of torchvision's detector by calls of the session."""
    names = [str(i) for i in range(len(detector.indices))]
    detector.fpn = _Pyramid(net, [*names, "pool"])
    detector.rpn.head = _Proposals(detector.fpn)
    heads = detector.roi_heads
    heads.box_head = nn.Identity()
    heads.box_predictor = _Regions(net, REGIONS, ["class_logits", "box_deltas"])
    if heads.has_mask():
        heads.mask_head = nn.Identity()
        heads.mask_predictor = _Regions(net, MASK_REGIONS, ["mask_logits"])
    return detector.eval()
