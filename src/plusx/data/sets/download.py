"""Where published files lie, and fetching them: checked, whole or not at all."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from plusx import store


@dataclass(frozen=True)
class Download:
    """A published file: its address, its digest ("sha256:..." or "md5:..."), bytes at most."""

    address: str
    digest: str
    most_bytes: int

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def check(self, data: bytes | bytearray) -> bool:
        """Whether these bytes are the published ones."""
        kind, _, digest = self.digest.partition(":")
        return hashlib.new(kind, data, usedforsecurity=False).hexdigest() == digest


def places() -> list[Path]:
    """The folders in which a published set is looked for, in order."""
    folder = os.environ.get("PLUSX_DATA")
    return [
        *([Path(folder).expanduser()] if folder else []),
        store.cache_folder() / "data",
        Path("data"),
    ]


def located(path: str | Path) -> Path:
    """Where a path of a recipe leads: as it stands, else below one of `places`, if it is there."""
    relative = Path(path).expanduser()
    if relative.is_absolute() or os.path.lexists(relative):
        return relative
    paths = (place / relative for place in places())
    return next((path for path in paths if os.path.lexists(path)), relative)


def fetch(item: Download, folder: Path) -> Path:
    """Download a file into `folder`, which is created.

    Raises OSError that names the address, and where to put the file by hand, if the download fails
    or is not the published file; nothing is kept then.
    """
    target = folder / item.name
    data = store.download(item.address, item.digest, item.most_bytes, target)
    store.make_folder(folder)
    store.write_bytes(target, data)
    return target
