"""Calibration of class probabilities: the expected calibration error, and temperature scaling."""

import math

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn import functional as F


BINS = 15  # of confidences (Guo et al. 2017, section 5)
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


def reliability(
    confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = BINS
) -> list[dict[str, float]]:
    """Return for each occupied bin of equal width its mean confidence, accuracy and count."""
    numbers = _bin_numbers(confidence, bins)
    return [
        {
            "confidence": float(confidence[numbers == number].mean()),
            "accuracy": float(correct[numbers == number].mean()),
            "count": int((numbers == number).sum()),
        }
        for number in np.unique(numbers)
    ]


def calibration_error(
    confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"], bins: int = BINS
) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy of a
    bin, weighted by its samples (Guo et al. 2017, equation 3). By chance it is above 0 even for
    calibrated predictions, especially for few samples."""
    excess = confidence - correct.astype(np.float64)
    sums = np.bincount(_bin_numbers(confidence, bins), weights=excess)
    return float(np.abs(sums).sum() / len(excess))


def _bin_numbers(confidence: Float[np.ndarray, "n"], bins: int) -> Int[np.ndarray, "n"]:
    """Return the bin of each confidence, from 0: bin m of M is (m / M, (m + 1) / M]."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def temperature(log_probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]) -> float:
    """Return the divisor of the logits with the smallest cross-entropy (Guo et al. 2017, section
    4.2), from 0.05 to 20. The search is over its logarithm, and there is one minimum."""
    from scipy.optimize import minimize_scalar  # slow to import

    logits = log_probabilities.double()

    def loss(log_divisor: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_divisor), labels))

    ends = math.log(LOWEST), math.log(HIGHEST)
    return math.exp(float(minimize_scalar(loss, bounds=ends, method="bounded").x))
