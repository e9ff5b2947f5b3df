"""Where files lie that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """PLUSX_CACHE, else ~/.cache/plusx."""
    folder = os.environ.get("PLUSX_CACHE")
    return Path(folder).absolute() if folder else Path.home() / ".cache" / "plusx"
