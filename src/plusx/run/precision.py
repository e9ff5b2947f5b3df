"""The precision that is quicker on this machine, measured once."""

import torch

from plusx import store
from plusx.errors import UserError
from plusx.run.environment import processor
from plusx.tasks.precision import quicker_precision


def remembered_precision(device: torch.device) -> str:
    """plusx.tasks.precision.quicker_precision, kept in the cache folder for this processor and
    version of torch, so that all runs of a machine compute alike however busy it is.
    """
    if device.type != "cpu":
        return quicker_precision(device)
    path = store.cache_folder() / "precision.json"
    name = f"{', '.join(processor())}, torch {torch.__version__}"
    try:
        known = store.read_json(path)
        if known.get(name) in ("float32", "bfloat16"):
            return str(known[name])
    except (OSError, UserError, AttributeError):
        known = {}
    chosen = quicker_precision(device)
    try:
        store.make_folder(path.parent)
        store.write_json(path, {**known, name: chosen})
    except OSError:  # it is measured again the next time
        pass
    return chosen
