"""Where published files lie, and fetching them: checked, whole or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from plusx import store


_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


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
    by_hand = f"Fetch it by hand and put it at {target}"
    data = bytearray()
    try:
        request = urllib.request.Request(item.address, headers={"User-Agent": "plusx"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            while chunk := answer.read(_CHUNK):
                data += chunk
                if len(data) > item.most_bytes:
                    raise OSError(f"more than {item.most_bytes:,} bytes came")
    except (OSError, http.client.HTTPException) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            why = f"HTTP {error.code} {error.reason}"
        raise OSError(
            f"{item.name} could not be fetched from {item.address}: {why}. {by_hand}"
        ) from error
    if not item.check(data):
        raise OSError(
            f"what came from {item.address} is not the published file ({item.digest}), and "
            f"nothing was kept. {by_hand}"
        )
    store.make_folder(folder)
    store.write_bytes(target, bytes(data))
    return target
