"""Learning rates as functions of the step.

A schedule takes the number of updates so far (0 at the first step) and returns the rate of the next
one. Steps are those of the whole run: a warm-up does not shift the schedule after it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from math import cos, pi
from typing import Any

from plusx.errors import UserError
from plusx.train.report import Report


Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """Return the same rate at every step."""
    _positive({"rate": rate})
    return lambda step: rate


def steps(rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """Return `rate`, multiplied by `factor` at each boundary (He et al. 2015: 0.1 at 32000 and
    48000). Products are computed in decimal, so that 0.1 times 0.1 is exactly the float 0.01."""
    _positive({"rate": rate, "factor": factor})
    ordered = list(boundaries)
    if any(following <= previous for previous, following in zip([0, *ordered], ordered)):
        raise UserError(f"boundaries are {ordered}; they must increase and start above 0")
    rates = [
        float(Decimal(str(rate)) * Decimal(str(factor)) ** count)
        for count in range(len(ordered) + 1)
    ]
    return lambda step: rates[sum(step >= boundary for boundary in ordered)]


def cosine(rate: float, total: int, begin: int = 0, end: float = 0.0) -> Schedule:
    """Return `rate` until step `begin`, then half a cosine down to `end` at step `total` and after.
    Loshchilov and Hutter 2017, equation 5, without restarts. `begin` is the end of a warm-up."""
    _positive({"rate": rate})
    if not 0 <= begin < total:
        raise UserError(f"a cosine from step {begin} to step {total}; 0 <= begin < total is needed")
    if not 0 <= end <= rate:
        raise UserError(f"end is {end}; allowed is 0 <= end <= rate, which is {rate}")

    def at(step: int) -> float:
        if step <= begin:
            return rate
        if step >= total:
            return end
        return end + (rate - end) * (1 + cos(pi * (step - begin) / (total - begin))) / 2

    return at


def one_cycle(
    rate: float, total: int, rise: float = 0.3, start: float = 25.0, end: float = 1e4
) -> Schedule:
    """Return half a cosine up from rate / start to `rate`, then one down to rate / start / end.

    Smith and Topin 2018, with the numbers of `torch.optim.lr_scheduler.OneCycleLR`: the peak is at
    step rise * total - 1 (rounded to a whole step), the end at step total - 1.
    """
    _positive({"rate": rate, "start": start, "end": end})
    peak = max(round(rise * total) - 1, 0)
    if total < 2 or not 0 < rise < 1:
        raise UserError(
            f"one_cycle: total = {total} and rise = {rise}; total >= 2 and 0 < rise < 1 are needed"
        )
    initial, final = rate / start, rate / start / end

    def at(step: int) -> float:
        if step < peak:
            return rate + (initial - rate) * (1 + cos(pi * step / peak)) / 2
        if step == peak:
            return rate
        if step >= total - 1:
            return final
        return final + (rate - final) * (1 + cos(pi * (step - peak) / (total - 1 - peak))) / 2

    return at


def warmup(schedule: Schedule, steps: int, start: float = 0.0) -> Schedule:
    """Return a linear ramp from `start` at step 0 to `schedule(steps)`, then `schedule`.

    (Goyal et al. 2017, section 2.2.) To reach the full rate at the end of the warm-up, hold it
    until there: `warmup(cosine(0.1, total, begin=500), 500)`.
    """
    if steps < 0 or start < 0:
        raise UserError(f"a warm-up of {steps} steps from the rate {start}; both must be >= 0")
    peak = schedule(steps)
    return lambda step: start + (peak - start) * step / steps if step < steps else schedule(step)


class WarmupUntil:
    """A low rate until the training error is below `error`, then the schedule.

    He et al. 2015, section 4.2: "we use 0.01 to warm up the training until the training error is
    below 80% (about 400 iterations), and then go back to 0.1". The error of one batch is too noisy,
    so the mean over the latest `window` batches decides (with 128 images per batch a standard error
    of 0.8 points at 80 %), and only once there are as many.

    Pass every report to `observe`, and save `state_dict()` with the checkpoint.
    """

    def __init__(
        self, schedule: Schedule, rate: float = 0.01, error: float = 0.8, window: int = 20
    ) -> None:
        _positive({"rate": rate})
        if not 0 < error <= 1 or window < 1:
            raise UserError(
                f"warm up until the error of {window} batches is below {error}: the error must "
                "be between 0 and 1, and the window at least 1"
            )
        self.schedule = schedule
        self.rate = rate
        self.error = error
        self.latest: deque[float] = deque(maxlen=window)
        self.warm = False

    def __call__(self, step: int) -> float:
        return self.schedule(step) if self.warm else self.rate

    def observe(self, report: Report) -> None:
        """Record the training error of a step."""
        if self.warm:
            return
        if "error" not in report.scalars:
            raise UserError("a warm-up until the error is low needs a task that reports an error")
        self.latest.append(report.scalars["error"])
        full = len(self.latest) == self.latest.maxlen
        self.warm = full and sum(self.latest) / len(self.latest) < self.error

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, exact in JSON."""
        return {"warm": self.warm, "latest": list(self.latest)}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Restore the values of `state_dict`."""
        self.warm = bool(values["warm"])
        self.latest = deque(values["latest"], maxlen=self.latest.maxlen)


def _positive(values: dict[str, float]) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be above 0 and finite")
