"""Calibration of class probabilities: the expected calibration error, and temperature scaling."""

import math

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F


BINS = 15  # of confidences (Guo et al. 2017, section 5)
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


def reliability(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], bins: int = BINS
) -> list[dict[str, float]]:
    """Return for each occupied bin of equal width its mean confidence, accuracy and count."""
    numbers = _numbers(confidence, bins)
    counts = numbers.bincount()
    confidences, accuracies = (
        numbers.bincount(values.double()) / counts for values in (confidence, correct)
    )
    return [
        {
            "confidence": float(confidences[number]),
            "accuracy": float(accuracies[number]),
            "count": int(counts[number]),
        }
        for number in counts.nonzero()[:, 0].tolist()
    ]


def calibration_error(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], bins: int = BINS
) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy of a
    bin, weighted by its samples (Guo et al. 2017, equation 3). It is above 0 by chance even for
    calibrated predictions, the more so the fewer the samples."""
    excess = confidence.double() - correct.double()
    sums = _numbers(confidence, bins).bincount(excess)
    return float(sums.abs().sum() / len(excess))


def _numbers(confidence: Float[Tensor, "n"], bins: int) -> Int64[Tensor, "n"]:
    """Return the bin of each confidence."""
    return (confidence * bins).long().clamp(max=bins - 1)


def temperature(log_probabilities: Float[Tensor, "n k"], labels: Int64[Tensor, "n"]) -> float:
    """Return the divisor of the logits with the smallest cross-entropy (Guo et al. 2017, section
    4.2), from 0.05 to 20. The search is over its logarithm, and there is one minimum."""
    from scipy.optimize import minimize_scalar  # slow to import

    logits = log_probabilities.double()

    def loss(log_divisor: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_divisor), labels))

    ends = math.log(LOWEST), math.log(HIGHEST)
    return math.exp(float(minimize_scalar(loss, bounds=ends, method="bounded").x))
