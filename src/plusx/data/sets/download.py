"""Fetching and unpacking the official archives: checked, whole or not at all."""

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from plusx import store
from plusx.errors import UserError


_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Download:
    """A published file: its address, its digest ("sha256:..." or "md5:..."), its most bytes."""

    address: str
    digest: str
    most_bytes: int

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def check(self, data: bytes) -> bool:
        """Whether these bytes are the published ones."""
        kind, _, wanted = self.digest.partition(":")
        return hashlib.new(kind, data, usedforsecurity=False).hexdigest() == wanted


def places() -> list[Path]:
    """The folders in which a published set is looked for, in order."""
    said = os.environ.get("PLUSX_DATA")
    return [
        *([Path(said).expanduser()] if said else []),
        store.cache_folder() / "data",
        Path("data"),
    ]


def located(path: str | Path) -> Path:
    """Where a path of a recipe leads: as it stands, else below one of `places`, if it is there."""
    given = Path(path).expanduser()
    if given.is_absolute() or os.path.lexists(given):
        return given
    return next((place / given for place in places() if os.path.lexists(place / given)), given)


def fetch(item: Download, folder: Path) -> Path:
    """Download a file into `folder`, which is made.

    Raises OSError that says the address, and where to put the file by hand, if it cannot be had
    or is not the one that was published; nothing is kept then.
    """
    target = folder / item.name
    by_hand = f"Fetch it by hand and put it at {target}"
    parts, length = [], 0
    try:
        request = urllib.request.Request(item.address, headers={"User-Agent": "plusx"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            while part := answer.read(_CHUNK):
                parts.append(part)
                length += len(part)
                if length > item.most_bytes:
                    raise OSError(f"more than {item.most_bytes:,} bytes came")
    except (OSError, http.client.HTTPException) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(error, urllib.error.HTTPError):
            why = f"HTTP {error.code} {error.reason}"
        raise OSError(
            f"{item.name} could not be fetched from {item.address}: {why}. {by_hand}"
        ) from error
    data = b"".join(parts)
    if not item.check(data):
        raise OSError(
            f"what came from {item.address} is not the published file ({item.digest}), and "
            f"nothing was kept. {by_hand}"
        )
    store.make_folder(folder)
    store.write_bytes(target, data)
    return target


def unpack(archive: Path, target: Path, most_bytes: int, most_files: int = 1000) -> None:
    """Unpack a tar archive into the new folder `target`, whole or not at all.

    The members' first folder is dropped. Only regular files and folders are unpacked: a link, a
    device, a name that leaves the folder, more bytes or files than said raise UserError.
    """
    try:
        with store.whole_folder(target) as partial, tarfile.open(archive) as members:
            _unpack(members, archive, partial, most_bytes, most_files)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged: {error}") from error


def _unpack(
    members: tarfile.TarFile, archive: Path, partial: Path, most_bytes: int, most_files: int
) -> None:
    files, size = 0, 0
    for member in members:
        if member.isdir():
            continue
        parts = Path(member.name).parts
        if not member.isreg():
            raise UserError(f"{archive}: {member.name!r} is no regular file and is not unpacked")
        if member.name.startswith("/") or ".." in parts or "\0" in member.name:
            raise UserError(f"{archive}: {member.name!r} would leave the folder")
        files, size = files + 1, size + member.size
        if files > most_files or size > most_bytes:
            raise UserError(
                f"{archive}: more than {most_files:,} files or {most_bytes:,} bytes come out of it"
            )
        content = members.extractfile(member)
        assert content is not None
        place = partial.joinpath(*(parts[1:] or parts))
        store.make_folder(place.parent)
        store.write_bytes(place, content.read())
