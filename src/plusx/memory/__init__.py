"""Trading time for the memory of training, attached to networks from outside."""

from plusx.memory.count import SavedBytes
from plusx.memory.save import save_memory


__all__ = ["SavedBytes", "save_memory"]
