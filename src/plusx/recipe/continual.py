"""The tables [stream] and [method] of continual learning."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from plusx.errors import UserError
from plusx.recipe.values import (
    CONFIG,
    Name,
    NonNegative,
    Path,
    Positive,
    Rate,
    Seed,
    UnitInterval,
)


def _tasks(value: object) -> object:
    if type(value) is int:
        if value < 2:
            raise UserError("a stream has at least two tasks")
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(t, list | tuple) for t in value):
        raise UserError(
            "must be a number of tasks, or a list of the classes of every task, such as "
            '[["0", "1"], ["2", "3"]]'
        )
    if len(value) < 2:
        raise UserError("a stream has at least two tasks")
    owner: dict[str, int] = {}
    for number, names in enumerate(value, 1):
        if not names:
            raise UserError(f"task {number} has no classes")
        for name in map(str, names):
            if name in owner:
                where = f"tasks {owner[name]} and {number}" if owner[name] != number else "one task"
                raise UserError(f"{where} share the class {name!r}, or list it twice")
            owner[name] = number
    return value


def _seeds(value: object) -> object:
    if isinstance(value, list | tuple) and (not value or len(set(value)) < len(value)):
        raise UserError("must be at least one seed, and no seed twice")
    return value


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Stream:
    """Tasks that a network is trained on one after another."""

    # class: new classes, and no task identity at test time; task: new classes, and the task of an
    # input is given; domain: the same classes, of other inputs
    scenario: Literal["class", "task", "domain"]
    # a number of tasks, or the classes of each
    tasks: Annotated[int | tuple[tuple[Name, ...], ...], BeforeValidator(_tasks)]
    # domain: what changes the images of a task
    transform: Literal["none", "permute", "rotate"] = "none"
    paths: tuple[Path, ...] = ()  # domain: the data of each task, in place of data.path
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds)] = (0, 1, 2)
    # the task that a run trains, and the run of the task before; set by `plusx stream`
    task: Positive | None = None
    previous: str = ""

    def __post_init__(self) -> None:
        if self.scenario != "domain":
            if self.transform != "none" or self.paths:
                key = "paths" if self.paths else "transform"
                raise UserError(f'{key} is for scenario = "domain", whose tasks have all classes')
            return
        if not isinstance(self.tasks, int):
            raise UserError('scenario = "domain": tasks is a number, since all have all classes')
        if (self.transform == "none") != bool(self.paths):
            raise UserError('scenario = "domain" needs either transform or paths')
        if self.paths and len(self.paths) != self.tasks:
            raise UserError(f"{len(self.paths)} paths for {self.tasks} tasks")


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Naive:
    """Training on one task after another, without a method against forgetting."""

    kind: Literal["naive"] = "naive"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Joint:
    """Training on the data of all tasks so far, for comparison with continual learning."""

    kind: Literal["joint"] = "joint"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Replay:
    """Half of the samples are of earlier tasks, from a buffer (Chaudhry et al. 2019)."""

    kind: Literal["replay"] = "replay"
    buffer: Positive = 200  # samples
    # reservoir: every sample so far with the same probability; balanced: equally many per class
    policy: Literal["reservoir", "balanced"] = "reservoir"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Ewc:
    """A penalty by the Fisher information of each task so far (Kirkpatrick et al. 2017)."""

    kind: Literal["ewc"] = "ewc"
    strength: NonNegative = 10.0  # of the penalty, lambda in the paper
    samples: Positive = 200  # of a task, from which the Fisher information is estimated


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class OnlineEwc:
    """One penalty by a running sum of Fisher informations (Schwarz et al. 2018)."""

    kind: Literal["online-ewc"] = "online-ewc"
    strength: NonNegative = 10.0
    samples: Positive = 200
    decay: UnitInterval = 1.0  # of the earlier Fisher information, gamma in the paper


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Si:
    """A penalty by how much each weight has lowered the loss (Zenke et al. 2017)."""

    kind: Literal["si"] = "si"
    strength: NonNegative = 10.0  # 2 c in the paper
    damping: Rate = 0.1  # xi in the paper


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Lwf:
    """Distillation from the network before the task, on the new data (Li and Hoiem 2016)."""

    kind: Literal["lwf"] = "lwf"
    weight: NonNegative = 1.0  # of the distillation
    temperature: Rate = 2.0


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Icarl:
    """Exemplars, distillation, and prediction by the nearest mean (Rebuffi et al. 2017)."""

    kind: Literal["icarl"] = "icarl"
    buffer: Positive = 200  # exemplars of all classes so far


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ErAce:
    """Replay in which new samples compete among the new classes only (Caccia et al. 2022)."""

    kind: Literal["er-ace"] = "er-ace"
    buffer: Positive = 200
    policy: Literal["reservoir", "balanced"] = "reservoir"


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Adapters:
    """Adapters, norms and a head for every task; the network of the first task does not change
    (Rebuffi et al. 2017, 2018)."""

    kind: Literal["adapters"] = "adapters"


ContinualMethod = Naive | Joint | Replay | Ewc | OnlineEwc | Si | Lwf | Icarl | ErAce | Adapters
CONTINUAL_KINDS = tuple(table.kind for table in get_args(ContinualMethod))
