"""The folders of published files, and their download with checks."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from plusx import store


@dataclass(frozen=True)
class Download:
    """A published file: address, digest ("sha256:..." or "md5:..."), maximum size in bytes."""

    address: str
    digest: str
    max_bytes: int

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def check(self, data: bytes | bytearray) -> bool:
        """Whether these bytes are the published ones."""
        kind, _, digest = self.digest.partition(":")
        return hashlib.new(kind, data, usedforsecurity=False).hexdigest() == digest


def data_folders() -> list[Path]:
    """Return the folders in which data sets are searched, in order."""
    folder = os.environ.get("PLUSX_DATA")
    return [
        *([Path(folder).expanduser()] if folder else []),
        store.cache_folder() / "data",
        Path("data"),
    ]


def located(path: str | Path) -> Path:
    """Return a path as it is, or, if it does not exist, below the first folder that contains it."""
    relative = Path(path).expanduser()
    if relative.is_absolute() or os.path.lexists(relative):
        return relative
    paths = (folder / relative for folder in data_folders())
    return next((path for path in paths if os.path.lexists(path)), relative)


def fetch(item: Download, folder: Path) -> Path:
    """Download a file into `folder`, which is created.

    Raises OSError, with the address and the path for a file downloaded by hand, if the download
    fails or is not the published file; nothing is kept then.
    """
    target = folder / item.name
    data = store.download(item.address, item.digest, item.max_bytes, target)
    store.make_folder(folder)
    store.write_bytes(target, data)
    return target
