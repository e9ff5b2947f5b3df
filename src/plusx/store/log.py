"""Logs of JSON lines that a resumed run continues from its checkpoint."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plusx.errors import UserError
from plusx.store.canonical import check_json
from plusx.store.files import flush_folder, with_path_in_errors, write_all


class Log:
    """A file of JSON lines, one per `append`.

    `position` (bytes, from `sync`) truncates the file: lines after the checkpoint that a run
    resumes from are written again. 0 starts a new log. None continues after the last complete line.
    """

    def __init__(self, path: str | Path, position: int | None = None) -> None:
        self.path = Path(path)
        with with_path_in_errors(self.path, 1):
            # the target of a link is not truncated
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
        try:
            size = os.fstat(self._descriptor).st_size
            if position is None:
                position = self._end_of_last_line(size)
            if position > size:
                raise UserError(
                    f"{self.path} has {size:,} bytes, but had {position:,} when the checkpoint was "
                    "saved: it was truncated since, and the run cannot be resumed"
                )
            self._position = position
            with with_path_in_errors(self.path, 1):
                os.ftruncate(self._descriptor, position)
                os.lseek(self._descriptor, position, os.SEEK_SET)
                flush_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def _end_of_last_line(self, size: int) -> int:
        end = size
        while end:
            start = max(0, end - 65536)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            newline = os.read(self._descriptor, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line to the system, not yet to the disk (see `sync`)."""
        check_json(record, str(self.path), "")
        line = json.dumps(dict(record), allow_nan=False).encode("ascii") + b"\n"
        with with_path_in_errors(self.path, len(line)):
            try:
                write_all(self._descriptor, line)
            except BaseException:
                # a partial line would corrupt the next one
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._position)
                    os.lseek(self._descriptor, self._position, os.SEEK_SET)
                raise
        self._position += len(line)

    def sync(self) -> int:
        """Flush all lines to the disk, and return the length of the file in bytes."""
        with with_path_in_errors(self.path, 0):
            os.fsync(self._descriptor)
        return self._position

    def close(self) -> None:
        """Close the file; closing it again has no effect."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
