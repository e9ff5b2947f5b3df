"""Logs of JSON lines that a resumed run goes on with where its checkpoint left off."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plusx.errors import UserError
from plusx.store.canonical import check_json
from plusx.store.files import explained, flush_folder, write_all


class Log:
    """A file of JSON lines, one `append` each.

    `position` (bytes, from `sync`) cuts the file there: what was logged after the checkpoint that
    a run resumes from is said again by the run. 0 starts anew. None goes on at the end, after the
    last whole line.
    """

    def __init__(self, path: str | Path, position: int | None = None) -> None:
        self.path = Path(path)
        with explained(self.path, 1):
            # the target of a link is not truncated
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
        try:
            size = os.fstat(self._descriptor).st_size
            if position is None:
                position = self._end_of_last_line(size)
            if position > size:
                raise UserError(
                    f"{self.path} has {size:,} bytes; the checkpoint was made when it had "
                    f"{position:,}. It was cut short since, and cannot be gone on with"
                )
            self._position = position
            with explained(self.path, 1):
                os.ftruncate(self._descriptor, position)
                os.lseek(self._descriptor, position, os.SEEK_SET)
                flush_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def _end_of_last_line(self, size: int) -> int:
        end = size
        while end:
            begin = max(0, end - 65536)
            os.lseek(self._descriptor, begin, os.SEEK_SET)
            newline = os.read(self._descriptor, end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line: to the system, not yet to the disk (see `sync`)."""
        check_json(record, str(self.path), "")
        line = json.dumps(dict(record), allow_nan=False).encode("ascii") + b"\n"
        with explained(self.path, len(line)):
            try:
                write_all(self._descriptor, line)
            except BaseException:
                # Half a line would spoil the next one.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._position)
                    os.lseek(self._descriptor, self._position, os.SEEK_SET)
                raise
        self._position += len(line)

    def sync(self) -> int:
        """Flushes every line to the disk and returns the length of the file in bytes."""
        with explained(self.path, 0):
            os.fsync(self._descriptor)
        return self._position

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
