"""Early stopping: a few lines for the caller's own loop."""

from dataclasses import dataclass


@dataclass
class Patience:
    """Counts the evaluations since the best one.

        if patience.observe(figures["accuracy"]):
            break

    The fields are all of its state, as plain values: `dataclasses.asdict` keeps it and
    `Patience(**values)` goes on.
    """

    limit: int  # evaluations without a better one that are borne
    best: float | None = None  # the highest figure so far
    waited: int = 0  # evaluations since then

    def observe(self, figure: float) -> bool:
        """Take in a figure of which more is better; True once `limit` others were no better."""
        if self.best is None or figure > self.best:
            self.best, self.waited = figure, 0
        else:
            self.waited += 1
        return self.waited >= self.limit
