"""Early stopping, for the caller's own loop."""

from dataclasses import dataclass


@dataclass
class Patience:
    """Counts evaluations since the best one.

        if patience.observe(metrics["accuracy"]):
            break

    The fields are its whole state, as plain values: `dataclasses.asdict` saves it and
    `Patience(**values)` restores it.
    """

    limit: int  # evaluations without improvement after which training stops
    best: float | None = None  # the highest value so far
    waited: int = 0  # evaluations since then

    def observe(self, value: float) -> bool:
        """Record a value (higher is better). Return True after `limit` values without
        improvement."""
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.limit
