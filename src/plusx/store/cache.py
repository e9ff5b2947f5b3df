"""The folder of files that can be downloaded or computed again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return PLUSX_CACHE, else ~/.cache/plusx."""
    folder = os.environ.get("PLUSX_CACHE")
    return Path(folder).absolute() if folder else Path.home() / ".cache" / "plusx"
