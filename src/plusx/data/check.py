"""Every file is decoded once before training, and the verdict is remembered.

The verdicts lie in the cache folder, never beside the data, under each file's size and times of
change: a file that changes is decoded again.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import PIL

from plusx import store
from plusx.data.download import cache_folder
from plusx.data.image import DEFAULT_LIMIT, Verdict, examine, printable
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

OnUnreadable = Literal["error", "skip"]
Terms = list[Any]  # plain values that JSON can hold
Item = TypeVar("Item")
State = Literal["used", "refused", "ignored"]

# raised whenever the rules of decoding change, so that old verdicts count no more
_RULES = 2
_NAMED = 10  # files that a message names before it counts
_THREADS = 4
_CACHE_LIMIT = 2**29


class Entry(NamedTuple):
    """One file (or link, or hidden folder) of a set, and what becomes of it."""

    path: str
    label: str
    state: State = "used"
    reason: str = ""
    row: int | None = None  # of the CSV
    split: str = ""  # train, validation, test, or "" where the data does not say
    group: str = ""  # what it shares with others, as a patient; those stay together in splits

    def name(self, root: str) -> str:
        """What to call it in a message."""
        shown = printable(self.path, root)
        return shown if self.row is None else f"row {self.row} ({shown})"


def keep(
    entries: Iterable[Entry], root: str, on_unreadable: OnUnreadable, limit: int = DEFAULT_LIMIT
) -> tuple[list[Entry], list[str]]:
    """The entries that can be used, after decoding each of them, and notices about the rest.

    Raises UserError that names the files which cannot be used, with the reasons, unless they are
    to be skipped.
    """
    return judged(examined(list(entries), root, limit), root, on_unreadable)


def judged(
    entries: list[Entry], root: str, on_unreadable: OnUnreadable
) -> tuple[list[Entry], list[str]]:
    """The same of entries that have been decoded."""
    used = [entry for entry in entries if entry.state == "used"]
    refused = [entry for entry in entries if entry.state == "refused"]
    notices = []
    if refused:
        said = [f"{entry.name(root)}: {entry.reason}" for entry in refused]
        count = f"{len(refused):,} of {len(used) + len(refused):,} files"
        if on_unreadable == "error":
            more = f"; and {len(said) - _NAMED:,} more" if len(said) > _NAMED else ""
            raise UserError(
                f"{count} cannot be used: {'; '.join(said[:_NAMED])}{more} "
                '(on_unreadable = "skip" leaves them out)'
            )
        notices += [f"{count} skipped", *(f"skipped {line}" for line in said)]
    remarks: dict[str, list[str]] = {}
    for entry in entries:
        if entry.state != "refused" and entry.reason:
            remarks.setdefault(f"{entry.state}, {entry.reason}", []).append(entry.name(root))
    for remark, names in remarks.items():
        more = ", ..." if len(names) > _NAMED else ""
        notices.append(f"{len(names):,} {remark}: {', '.join(names[:_NAMED])}{more}")
    return used, notices


def examined(entries: list[Entry], root: str, limit: int = DEFAULT_LIMIT) -> list[Entry]:
    """The same entries; those that cannot be decoded are refused, with the reason."""
    paths = [entry.path for entry in entries if entry.state == "used"]
    verdicts = dict(zip(paths, _verdicts(paths, root, limit)))
    return [_judged(entry, verdicts.get(entry.path)) for entry in entries]


def _judged(entry: Entry, verdict: Verdict | None) -> Entry:
    if entry.state != "used" or verdict is None:
        return entry
    if verdict.problem is not None:
        return entry._replace(state="refused", reason=verdict.problem)
    return entry._replace(reason=verdict.notice or "")


def _verdicts(paths: list[str], root: str, limit: int) -> list[Verdict]:
    place = _cache_place(root)
    known = _remembered(place, limit)
    marks = [mark_of(path) for path in paths]
    found = [known.get(_key(path, root)) for path in paths]
    fresh = [
        number
        for number, (mark, old) in enumerate(zip(marks, found))
        if mark is None or old is None or old[0] != mark
    ]
    files = [paths[number] for number in fresh]
    news = dict(zip(fresh, decoded_verdicts(files, lambda path: path, limit)))
    verdicts = []
    for number, path in enumerate(paths):
        verdict = news[number] if number in news else Verdict(*found[number][1])  # type: ignore[index]
        verdicts.append(verdict)
        if number in news and marks[number] is not None:
            known[_key(path, root)] = [marks[number], [*verdict]]
    if news:
        _remember(place, limit, known)
    return verdicts


def decoded_verdicts(
    items: Sequence[Item], content: Callable[[Item], str | bytes], limit: int = DEFAULT_LIMIT
) -> Iterator[Verdict]:
    """Decode each of the items, whose path or bytes `content` gives, in threads."""
    threads = min(_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="plusx-check")
    began = said = time.monotonic()
    try:
        verdicts = pool.map(lambda item: examine(content(item), limit), items)
        for count, verdict in enumerate(verdicts, 1):
            now = time.monotonic()
            if now - said > 2 or (count == len(items) and now - began > 2):
                _log.info("checked %s of %s images", f"{count:,}", f"{len(items):,}")
                said = now
            yield verdict
    finally:
        pool.shutdown(cancel_futures=True)


def mark_of(path: str) -> list[int] | None:
    """What tells a file from its changed self; None where it cannot be asked."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def kept_json(path: str, what: str, said: Terms) -> Any:
    """What was kept of a file under the same terms; None where nothing was, or it is damaged."""
    try:
        kept = json.loads(store.read_bytes(_kept_place(path, what), _CACHE_LIMIT))
        return kept["kept"] if kept["terms"] == said else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_json(path: str, what: str, said: Terms, value: Any) -> None:
    """Keep what was found out about a file, and the terms under which it holds."""
    place = _kept_place(path, what)
    try:
        store.make_folder(place.parent)
        store.write_text(place, json.dumps({"terms": said, "kept": value}))
    except OSError as error:
        _log.info("what was checked of %s is not kept: %s", printable(path), error)


def _kept_place(path: str, what: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache_folder() / "checked" / f"{name}-{what}.json"


def _key(path: str, root: str) -> str:
    return os.path.relpath(path, root)


def _cache_place(root: str) -> Path:
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return cache_folder() / "checked" / f"{name}.json"


def terms(limit: int) -> Terms:
    """What a verdict depends on besides its file."""
    return [_RULES, limit, PIL.__version__]


def _remembered(place: Path, limit: int) -> dict[str, Any]:
    """The verdicts of earlier times by name; none where the file is missing, old or damaged."""
    try:
        kept = json.loads(store.read_bytes(place, _CACHE_LIMIT))
        if kept["terms"] != terms(limit):
            return {}
        for mark, (problem, notice) in kept["files"].values():
            right = len(mark) == 3 and all(isinstance(number, int) for number in mark)
            if not right or not {type(problem), type(notice)} <= {str, type(None)}:
                return {}
        return dict(kept["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(place: Path, limit: int, verdicts: dict[str, Any]) -> None:
    try:
        store.make_folder(place.parent)
        store.write_text(place, json.dumps({"terms": terms(limit), "files": verdicts}))
    except OSError as error:
        # without a memory the files are decoded again next time, no more
        _log.info("the verdicts on the images are not kept: %s", error)
