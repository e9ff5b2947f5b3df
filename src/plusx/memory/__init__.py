"""Memory plans, which trade time for training memory, and the count of saved bytes."""

from plusx.memory.count import SavedBytes
from plusx.memory.save import save_memory


__all__ = ["SavedBytes", "save_memory"]
