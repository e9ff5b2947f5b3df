"""Metrics of a stream, from the accuracies on every task after every task."""

from collections.abc import Sequence

import numpy as np


Matrix = Sequence[Sequence[float]]  # [i][j]: accuracy on task j after training on task i


def average_accuracy(matrix: Matrix) -> float:
    """Return the mean accuracy over all tasks at the end (Lopez-Paz and Ranzato 2017, ACC)."""
    return float(np.mean(matrix[-1]))


def forgetting(matrix: Matrix) -> float:
    """Return the best earlier accuracy minus the last one, the mean over all tasks except the last
    (Chaudhry et al. 2018, section 3.1)."""
    values = np.asarray(matrix)
    return float((values[:-1, :-1].max(0) - values[-1, :-1]).mean())


def backward_transfer(matrix: Matrix) -> float:
    """Return the last accuracy minus that right after the task, the mean over all tasks except the
    last (Lopez-Paz and Ranzato 2017, BWT)."""
    values = np.asarray(matrix)
    return float((values[-1] - values.diagonal())[:-1].mean())


def forward_transfer(matrix: Matrix, untrained: Sequence[float]) -> float:
    """Return the accuracy on a task right before it is trained, minus that of an untrained network,
    the mean over all tasks except the first (Lopez-Paz and Ranzato 2017, FWT)."""
    values = np.asarray(matrix)
    return float((values.diagonal(1) - np.asarray(untrained)[1:]).mean())
