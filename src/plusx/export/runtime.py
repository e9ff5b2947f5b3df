"""ONNX Runtime: the check that it is installed, and its sessions."""

import os
from importlib.util import find_spec
from typing import Any

from plusx.errors import MissingLibrary, UserError


PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ERRORS_ONLY = 3  # ONNX Runtime's log level


def require_onnx() -> None:
    """Raise MissingLibrary if a package of the extra `onnx` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingLibrary(f"ONNX files need {' and '.join(missing)}", "onnx")
    # read at the first import of onnxruntime, which otherwise reports its use
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def open_session(content: bytes, threads: int) -> Any:
    """Return an onnxruntime.InferenceSession on the CPU for the bytes of a file."""
    require_onnx()
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no other class in common
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"ONNX Runtime cannot run the file: {lines[0]}") from None
