"""Training a recipe in a folder, with checkpoints, and evaluating and using the run."""

from plusx.run.evaluation import evaluate
from plusx.run.exporting import export_onnx
from plusx.run.folder import Run, load_run
from plusx.run.prediction import predict, write_predictions
from plusx.run.signals import Stopped
from plusx.run.training import train


__all__ = [
    "Run",
    "Stopped",
    "evaluate",
    "export_onnx",
    "load_run",
    "predict",
    "train",
    "write_predictions",
]
