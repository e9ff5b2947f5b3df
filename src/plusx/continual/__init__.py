"""Continual learning: methods for training on one task after another, by their kind."""

from plusx.continual.adapters import Adapters
from plusx.continual.baselines import Joint, Naive
from plusx.continual.er_ace import ErAce
from plusx.continual.ewc import Ewc, OnlineEwc
from plusx.continual.icarl import Icarl
from plusx.continual.lwf import Lwf
from plusx.continual.method import Method
from plusx.continual.replay import Replay
from plusx.continual.si import Si


METHODS: dict[str, type[Method]] = {
    "naive": Naive,
    "joint": Joint,
    "replay": Replay,
    "ewc": Ewc,
    "online-ewc": OnlineEwc,
    "si": Si,
    "lwf": Lwf,
    "icarl": Icarl,
    "er-ace": ErAce,
    "adapters": Adapters,
}
