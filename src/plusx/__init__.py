"""plusx: residual learning, y = F(x) + x, exact, measured and practical.

Names are imported at their first use: `import plusx` imports neither torch nor other slow packages.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # for editors and type checkers
    from plusx.data.batch import Batch as Batch
    from plusx.data.dataset import Dataset as Dataset
    from plusx.data.loader import Loader as Loader
    from plusx.data.loader import batches as batches
    from plusx.data.modality.audio.log_mel import log_mel as log_mel
    from plusx.errors import UserError as UserError
    from plusx.explain.grad_cam import grad_cam as grad_cam
    from plusx.grammar.arithmetic import measure as measure
    from plusx.grammar.spec import Block as Block
    from plusx.grammar.spec import Net as Net
    from plusx.grammar.spec import Stage as Stage
    from plusx.grammar.words import parse as parse
    from plusx.memory import save_memory as save_memory
    from plusx.models import create_model as create_model
    from plusx.models import find as find
    from plusx.models import list_models as list_models
    from plusx.run.predictor import Predictor as Predictor
    from plusx.run.predictor import load as load
    from plusx.store import load_checkpoint as load_checkpoint
    from plusx.store import save_checkpoint as save_checkpoint
    from plusx.tasks.classify import Classify as Classify
    from plusx.tasks.detect import Detect as Detect
    from plusx.tasks.embed import Embed as Embed
    from plusx.tasks.generate import Generate as Generate
    from plusx.tasks.prepare import prepare as prepare
    from plusx.tasks.segment import Segment as Segment
    from plusx.tasks.task import Task as Task
    from plusx.train import schedule as schedule
    from plusx.train.loop import evaluate as evaluate
    from plusx.train.loop import fit as fit
    from plusx.train.optim import make_optimizer as make_optimizer
    from plusx.train.patience import Patience as Patience
    from plusx.train.state import State as State
    from plusx.train.update import GradientStep as GradientStep
    from plusx.train.update import with_ema as with_ema
    from plusx.weights.files import save_network as save  # noqa: F401


__version__ = "0.1.0"

# name: its module, and its name there; None: the module itself
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "Batch": ("plusx.data.batch", "Batch"),
    "Block": ("plusx.grammar.spec", "Block"),
    "Classify": ("plusx.tasks.classify", "Classify"),
    "Dataset": ("plusx.data.dataset", "Dataset"),
    "Detect": ("plusx.tasks.detect", "Detect"),
    "Embed": ("plusx.tasks.embed", "Embed"),
    "Generate": ("plusx.tasks.generate", "Generate"),
    "GradientStep": ("plusx.train.update", "GradientStep"),
    "Loader": ("plusx.data.loader", "Loader"),
    "Net": ("plusx.grammar.spec", "Net"),
    "Patience": ("plusx.train.patience", "Patience"),
    "Predictor": ("plusx.run.predictor", "Predictor"),
    "Segment": ("plusx.tasks.segment", "Segment"),
    "Stage": ("plusx.grammar.spec", "Stage"),
    "State": ("plusx.train.state", "State"),
    "Task": ("plusx.tasks.task", "Task"),
    "UserError": ("plusx.errors", "UserError"),
    "batches": ("plusx.data.loader", "batches"),
    "create_model": ("plusx.models", "create_model"),
    "evaluate": ("plusx.train.loop", "evaluate"),
    "find": ("plusx.models", "find"),
    "fit": ("plusx.train.loop", "fit"),
    "grad_cam": ("plusx.explain.grad_cam", "grad_cam"),
    "list_models": ("plusx.models", "list_models"),
    "load": ("plusx.run.predictor", "load"),
    "load_checkpoint": ("plusx.store", "load_checkpoint"),
    "log_mel": ("plusx.data.modality.audio.log_mel", "log_mel"),
    "make_optimizer": ("plusx.train.optim", "make_optimizer"),
    "measure": ("plusx.grammar.arithmetic", "measure"),
    "parse": ("plusx.grammar.words", "parse"),
    "prepare": ("plusx.tasks.prepare", "prepare"),
    "save": ("plusx.weights.files", "save_network"),
    "save_checkpoint": ("plusx.store", "save_checkpoint"),
    "save_memory": ("plusx.memory", "save_memory"),
    "schedule": ("plusx.train.schedule", None),
    "with_ema": ("plusx.train.update", "with_ema"),
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        if find_spec(f"plusx.{name}") is None:
            raise AttributeError(f"module 'plusx' has no attribute {name!r}")
        return import_module(f"plusx.{name}")
    path, attribute = _EXPORTS[name]
    module = import_module(path)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
