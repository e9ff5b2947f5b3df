"""An ONNX file as a module: ONNX Runtime behind torch's interface."""

from typing import Any

import torch
from torch import Tensor, nn

from plusx.errors import UserError
from plusx.export.extra import require_onnx
from plusx.export.graph import INPUT


_ERRORS = 3  # the least that ONNX Runtime writes to standard error by itself


class OnnxNetwork(nn.Module):
    """Logits (n, k) from inputs (n, ...), computed by ONNX Runtime on the CPU.

    It has as many threads as torch has when it is made. There are no gradients.
    UserError: ONNX Runtime cannot run the content. RuntimeError: the extra is not installed.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.session = open_session(content, torch.get_num_threads())

    def forward(self, x: Tensor) -> Tensor:
        given = x.detach().cpu().contiguous().numpy()
        (answers,) = self.session.run(None, {INPUT: given})
        return torch.from_numpy(answers).to(x.device)


def open_session(content: bytes, threads: int) -> Any:
    """An onnxruntime.InferenceSession over a file's content, on the CPU."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no other class in common
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"ONNX Runtime cannot run it: {said[0]}") from None
