"""plusx: residual learning, y = F(x) + x, exact, measured and practical.

Names are imported when they are first used: `import plusx` itself loads neither torch nor anything
else that is slow.
"""

from importlib import import_module
from typing import Any


__version__ = "0.1.0"

# name: the module that has it
_EXPORTS = {
    "Batch": "plusx.data.batch",
    "Block": "plusx.grammar.spec",
    "Classify": "plusx.tasks.classify",
    "GradientStep": "plusx.train.update",
    "Loader": "plusx.data.loader",
    "Net": "plusx.grammar.spec",
    "Stage": "plusx.grammar.spec",
    "State": "plusx.train.state",
    "batches": "plusx.data.loader",
    "create_model": "plusx.models",
    "evaluate": "plusx.train.loop",
    "find": "plusx.models",
    "fit": "plusx.train.loop",
    "grad_cam": "plusx.explain.grad_cam",
    "list_models": "plusx.models",
    "parse": "plusx.grammar.words",
    "prepare": "plusx.tasks.prepare",
    "save_memory": "plusx.memory",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'plusx' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
