"""Every file is decoded once before training, and the verdict is remembered.

The verdicts lie in the cache folder, never beside the data, under each file's size and times of
change: a file that changes is decoded again, and any other is not even opened.
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

from plusx import store
from plusx.data.image_file import UnreadableImage, Verdict, printable
from plusx.data.modality import Modality
from plusx.errors import UserError


_log = logging.getLogger("plusx.data")

OnUnreadable = Literal["error", "skip"]
Terms = list[Any]  # plain values that JSON can hold
Item = TypeVar("Item")
Result = TypeVar("Result")
State = Literal["used", "refused", "ignored"]

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
    group: str = ""  # shared with others, as a patient; those stay together in splits
    verdict: Verdict | None = None  # of decoding it

    def name(self, root: str) -> str:
        """What to call it in a message."""
        shown = printable(self.path, root)
        return shown if self.row is None else f"row {self.row} ({shown})"


def check_entries(
    entries: Iterable[Entry], root: str, on_unreadable: OnUnreadable, modality: Modality
) -> tuple[list[Entry], list[str]]:
    """The entries that can be used, after decoding each of them, and warnings about the rest.

    Raises UserError that names the files which cannot be used, with the reasons, unless they are
    to be skipped; and where what is said of the files' values fits none of them.
    """
    used, warnings = usable_entries(examined(list(entries), root, modality), root, on_unreadable)
    verdicts = [entry.verdict for entry in used if entry.verdict is not None]
    if (problem := modality.common_problem(verdicts)) is not None:
        raise UserError(problem)
    return used, warnings


def usable_entries(
    entries: Sequence[Entry], root: str, on_unreadable: OnUnreadable
) -> tuple[list[Entry], list[str]]:
    """The same of entries that have been decoded."""
    used = [entry for entry in entries if entry.state == "used"]
    refused = [entry for entry in entries if entry.state == "refused"]
    warnings = []
    if refused:
        lines = [f"{entry.name(root)}: {entry.reason}" for entry in refused]
        count = f"{len(refused):,} of {len(used) + len(refused):,} files"
        if on_unreadable == "error":
            raise UserError(
                f'{count} cannot be used: {listed(lines)} (on_unreadable = "skip" leaves them out)'
            )
        warnings += [f"{count} skipped", *(f"skipped {line}" for line in lines)]
    remarks: dict[str, list[str]] = {}
    for entry in entries:
        if entry.state != "refused" and entry.reason:
            remarks.setdefault(f"{entry.state}, {entry.reason}", []).append(entry.name(root))
    for remark, names in remarks.items():
        more = ", ..." if len(names) > _NAMED else ""
        warnings.append(f"{len(names):,} {remark}: {', '.join(names[:_NAMED])}{more}")
    return used, warnings


def listed(lines: Sequence[str]) -> str:
    """The first lines of a list in a message, and how many more there are."""
    more = f"; and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return f"{'; '.join(lines[:_NAMED])}{more}"


def examined(entries: list[Entry], root: str, modality: Modality) -> list[Entry]:
    """The same entries with their verdicts; those that cannot be decoded are refused."""
    paths = [entry.path for entry in entries if entry.state == "used"]
    verdicts = dict(zip(paths, _verdicts(paths, root, modality)))
    return [_with_verdict(entry, verdicts.get(entry.path)) for entry in entries]


def _with_verdict(entry: Entry, verdict: Verdict | None) -> Entry:
    if entry.state != "used" or verdict is None:
        return entry
    if verdict.problem is not None:
        return entry._replace(state="refused", reason=verdict.problem)
    return entry._replace(reason=verdict.warning or "", verdict=verdict)


def _verdicts(paths: list[str], root: str, modality: Modality) -> list[Verdict]:
    terms, what = modality.verdict_terms(), f"files-{modality.kind}"
    known = _checked(kept_json(root, what, terms))
    keys = [os.path.relpath(path, root) for path in paths]
    marks = [mark_of(path) for path in paths]
    verdicts: list[Verdict | None] = [
        Verdict(*known[key][1]) if mark is not None and key in known and known[key][0] == mark
        else None
        for key, mark in zip(keys, marks)
    ]  # fmt: skip
    fresh = [number for number, verdict in enumerate(verdicts) if verdict is None]
    found = in_threads([paths[number] for number in fresh], modality.examine)
    for number, verdict in zip(fresh, found):
        verdicts[number] = verdict
        if marks[number] is not None:
            known[keys[number]] = [marks[number], [*verdict]]
    if fresh:
        keep_json(root, what, terms, known)
    return [verdict for verdict in verdicts if verdict is not None]


def _checked(kept: Any) -> dict[str, Any]:
    """Verdicts of earlier times by name; none where they are damaged."""
    try:
        for mark, verdict in kept.values():
            problem, warning, *numbers, content = Verdict(*verdict)
            right = len(mark) == 3 and all(isinstance(number, int) for number in mark)
            texts = {type(problem), type(warning)} <= {str, type(None)}
            numeric = all(isinstance(number, int | float) for number in numbers)
            if not right or not texts or not numeric or not isinstance(content, str):
                return {}
        return dict(kept)
    except (TypeError, ValueError, AttributeError):
        return {}


def in_threads(items: Sequence[Item], examine: Callable[[Item], Result]) -> Iterator[Result]:
    """What `examine` finds of each of the items, in threads."""
    threads = min(_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="plusx-check")
    began = logged = time.monotonic()
    try:
        for count, verdict in enumerate(pool.map(examine, items), 1):
            now = time.monotonic()
            if now - logged > 2 or (count == len(items) and now - began > 2):
                _log.info("checked %s of %s images", f"{count:,}", f"{len(items):,}")
                logged = now
            yield verdict
    finally:
        pool.shutdown(cancel_futures=True)


def reason_of(error: UnreadableImage | OSError) -> str:
    """Why a file cannot be used, in a few words."""
    strerror = getattr(error, "strerror", None)
    return f"cannot be read: {strerror or error}" if isinstance(error, OSError) else str(error)


def mark_of(path: str) -> list[int] | None:
    """What tells a file from its changed self; None where it cannot be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def kept_json(path: str, what: str, terms: Terms) -> Any:
    """What was kept of a path under the same terms; None where nothing was, or it is damaged."""
    try:
        kept = json.loads(store.read_bytes(_cache_path(path, what), _CACHE_LIMIT))
        return kept["kept"] if kept["terms"] == terms else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_json(path: str, what: str, terms: Terms, value: Any) -> None:
    """Keep what was found out about a path, and the terms under which it holds."""
    place = _cache_path(path, what)
    try:
        store.make_folder(place.parent)
        store.write_text(place, json.dumps({"terms": terms, "kept": value}))
    except OSError as error:
        # without it, files are decoded again next time, no more
        _log.info("what was checked of %s is not kept: %s", printable(path), error)


def _cache_path(path: str, what: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return store.cache_folder() / "checked" / f"{name}-{what}.json"
