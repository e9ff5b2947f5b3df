"""Learning rates as functions of the step.

A schedule takes the number of updates already made (the first step is 0) and gives the rate of the
next. Steps are always those of the whole run: nothing shifts when a warm-up is put in front.
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
    """The same rate at every step."""
    _positive({"rate": rate})
    return lambda step: rate


def steps(rate: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """`rate`, times `factor` from each boundary on (He et al. 2015: 0.1, boundaries 32000, 48000).

    The products are made in decimal, so that 0.1 times 0.1 is the 0.01 one would write.
    """
    _positive({"rate": rate, "factor": factor})
    ordered = list(boundaries)
    if any(late <= early for early, late in zip([0, *ordered], ordered)):
        raise UserError(f"boundaries are {ordered}; they have to rise, and begin above 0")
    rates = [
        float(Decimal(str(rate)) * Decimal(str(factor)) ** count)
        for count in range(len(ordered) + 1)
    ]
    return lambda step: rates[sum(step >= boundary for boundary in ordered)]


def cosine(rate: float, total: int, begin: int = 0, end: float = 0.0) -> Schedule:
    """`rate` until step `begin`, then half a cosine down to `end` at step `total` and after it.

    Loshchilov and Hutter 2017, equation 5, without restarts. `begin` is for the end of a warm-up.
    """
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
    """Up by half a cosine from rate / start to `rate`, down by another to rate / start / end.

    Smith and Topin 2018, with the figures of `torch.optim.lr_scheduler.OneCycleLR`: the peak is
    at step rise * total - 1 (rounded to a whole step), the end at step total - 1.
    """
    _positive({"rate": rate, "start": start, "end": end})
    peak = max(round(rise * total) - 1, 0)
    if total < 2 or not 0 < rise < 1:
        raise UserError(f"one cycle of {total} steps, rising for {rise} of them: nothing to do")
    low, last = rate / start, rate / start / end

    def at(step: int) -> float:
        if step < peak:
            return rate + (low - rate) * (1 + cos(pi * step / peak)) / 2
        if step == peak:
            return rate
        if step >= total - 1:
            return last
        return last + (rate - last) * (1 + cos(pi * (step - peak) / (total - 1 - peak))) / 2

    return at


def warmup(schedule: Schedule, steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` at step 0 to `schedule(steps)` at step `steps`; then `schedule`.

    (Goyal et al. 2017, section 2.2.) For the rate after the warm-up to be the full one, let the
    schedule hold it until there: `warmup(cosine(0.1, total, begin=500), 500)`.
    """
    if steps < 0 or start < 0:
        raise UserError(f"a warm-up of {steps} steps from the rate {start}; both have to be >= 0")
    goal = schedule(steps)
    return lambda step: start + (goal - start) * step / steps if step < steps else schedule(step)


class WarmupUntil:
    """A low rate until the training error has fallen below `error`, then the schedule.

    He et al. 2015, section 4.2: "we use 0.01 to warm up the training until the training error is
    below 80% (about 400 iterations), and then go back to 0.1". The error of one batch is too noisy
    to decide on, so it is the mean over the latest `window` batches (of 128 images: 2,560 images,
    a standard error of 0.8 points at 80 %), and nothing is decided before there are as many.

    Hand every report to `observe`; keep `state_dict()` with the checkpoint.
    """

    def __init__(
        self, schedule: Schedule, rate: float = 0.01, error: float = 0.8, window: int = 20
    ) -> None:
        _positive({"rate": rate})
        if not 0 < error <= 1 or window < 1:
            raise UserError(
                f"warm up until the error of {window} batches is below {error}: the error has to "
                "lie between 0 and 1, and the window to be at least 1"
            )
        self.schedule = schedule
        self.rate = rate
        self.error = error
        self.latest: deque[float] = deque(maxlen=window)
        self.warm = False

    def __call__(self, step: int) -> float:
        return self.schedule(step) if self.warm else self.rate

    def observe(self, report: Report) -> None:
        """Take in the training error of a step."""
        if self.warm:
            return
        if "error" not in report.scalars:
            raise UserError("warming up until the error falls needs a task that reports an error")
        self.latest.append(report.scalars["error"])
        full = len(self.latest) == self.latest.maxlen
        self.warm = full and sum(self.latest) / len(self.latest) < self.error

    def state_dict(self) -> dict[str, Any]:
        """Plain values, exact in JSON."""
        return {"warm": self.warm, "latest": list(self.latest)}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.warm = bool(values["warm"])
        self.latest = deque(values["latest"], maxlen=self.latest.maxlen)


def _positive(named: dict[str, float]) -> None:
    for name, value in named.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it has to be above 0 and finite")
