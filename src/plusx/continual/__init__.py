"""Continual learning: methods for training on one task after another, by their kind."""

from plusx.continual.baselines import Joint, Naive
from plusx.continual.method import Method
from plusx.continual.replay import Replay


METHODS: dict[str, type[Method]] = {
    "naive": Naive,
    "joint": Joint,
    "replay": Replay,
}
