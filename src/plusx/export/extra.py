"""The libraries of the extra `onnx`, or a sentence that says how to get them."""

from importlib.util import find_spec


def require_onnx() -> None:
    """RuntimeError that names the extra, where onnx or onnxruntime is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"ONNX files need {' and '.join(missing)}, which this environment does not have: "
            "pip install 'plusx[onnx]'"
        )
