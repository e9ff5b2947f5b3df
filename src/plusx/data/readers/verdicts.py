"""Decoding of every file once before training, with cached verdicts.

Verdicts are cached in the cache folder, never beside the data, with each file's size and times of
change. Only changed files are opened and decoded again.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter

from plusx import store
from plusx.data.image_file import UnreadableInput, Verdict, printable
from plusx.data.modality import Modality
from plusx.errors import UserError, counted


_log = logging.getLogger("plusx.data")

OnUnreadable = Literal["error", "skip"]
Terms = Sequence[Any]  # plain values that JSON can hold
Stamp = tuple[int, int, int]  # of a file: bytes, times of change of content and of status in ns
Item = TypeVar("Item")
Result = TypeVar("Result")
State = Literal["used", "refused", "ignored"]

_NAMED = 10  # files that a message names
_THREADS = 4
_CACHE_LIMIT = 2**29


class LeftOut(str):
    """A warning about files, rows or boxes that are not used."""


class Skipped(LeftOut):
    """A warning about one that is left out because of on_unreadable = "skip"."""


class Entry(NamedTuple):
    """One file (or link, or hidden folder) of a data set, and whether it is used."""

    path: str
    label: str
    state: State = "used"
    reason: str = ""
    row: int | None = None  # of the CSV
    split: str = ""  # train, validation, test, or "" if the data does not state it
    group: str = ""  # such as a patient: entries of a group stay together in splits
    verdict: Verdict | None = None  # of decoding it

    def name(self, root: str) -> str:
        """Return the name for messages: the path below root, with its row in a CSV."""
        shown = printable(self.path, root)
        return shown if self.row is None else f"row {self.row} ({shown})"


def check_entries(
    entries: Iterable[Entry], root: str, on_unreadable: OnUnreadable, modality: Modality
) -> tuple[list[Entry], list[str]]:
    """Decode all entries; return the usable ones, and warnings about the others.

    Raises UserError with the reasons if files are unusable and not skipped, or all files together
    have a problem.
    """
    used, warnings = usable_entries(examined(list(entries), root, modality), root, on_unreadable)
    verdicts = [entry.verdict for entry in used if entry.verdict is not None]
    if (problem := modality.common_problem(verdicts)) is not None:
        raise UserError(problem)
    return used, warnings


def usable_entries(
    entries: Sequence[Entry], root: str, on_unreadable: OnUnreadable
) -> tuple[list[Entry], list[str]]:
    """Like check_entries, for entries that have been decoded."""
    used = [entry for entry in entries if entry.state == "used"]
    refused = [entry for entry in entries if entry.state == "refused"]
    warnings: list[str] = []
    if refused:
        lines = [f"{entry.name(root)}: {entry.reason}" for entry in refused]
        count = f"{len(refused):,} of {counted(len(used) + len(refused), 'file')}"
        if on_unreadable == "error":
            raise UserError(
                f'{count} cannot be used: {listed(lines)} (on_unreadable = "skip" leaves them out)'
            )
        warnings += skipped_warnings(f"{count} skipped", lines)
    names_by_reason: dict[tuple[State, str], list[str]] = {}
    for entry in entries:
        if entry.state != "refused" and entry.reason:
            names_by_reason.setdefault((entry.state, entry.reason), []).append(entry.name(root))
    for (state, reason), names in names_by_reason.items():
        more = ", ..." if len(names) > _NAMED else ""
        text = f"{len(names):,} {state}, {reason}: {', '.join(names[:_NAMED])}{more}"
        warnings.append(LeftOut(text) if state == "ignored" else text)
    return used, warnings


def skipped_warnings(summary: str, lines: Iterable[str]) -> list[str]:
    """Return the warnings about what on_unreadable = "skip" leaves out: a summary, then each."""
    return [LeftOut(summary), *(Skipped(f"skipped {line}") for line in lines)]


def listed(lines: Sequence[str]) -> str:
    """Return the first lines of a list for a message, and the number of the others."""
    more = f"; and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return f"{'; '.join(lines[:_NAMED])}{more}"


def examined(entries: list[Entry], root: str, modality: Modality) -> list[Entry]:
    """Return the entries with their verdicts; those that cannot be decoded are refused."""
    paths = [entry.path for entry in entries if entry.state == "used"]
    terms, cache_name = modality.verdict_terms(), f"files-{modality.kind}"
    verdicts = summaries_of_files(paths, root, cache_name, terms, modality.examine, Verdict)
    return [_with_verdict(entry, verdicts.get(entry.path)) for entry in entries]


def _with_verdict(entry: Entry, verdict: Verdict | None) -> Entry:
    if entry.state != "used" or verdict is None:
        return entry
    if verdict.problem is not None:
        return entry._replace(state="refused", reason=verdict.problem)
    return entry._replace(reason=verdict.warning or "", verdict=verdict)


def summaries_of_files(
    paths: Iterable[str],
    root: str,
    cache_name: str,
    terms: Terms,
    examine: Callable[[str], Result],
    kind: type[Result],
) -> dict[str, Result]:
    """Return the result of `examine` for each path; cached until the file or `terms` change.

    kind: the type of a result, a NamedTuple of JSON-ready values
    """
    stored = read_cache(root, cache_name, terms, dict[str, tuple[Stamp, kind]]) or {}  # type: ignore[valid-type]
    cached: dict[str, tuple[Stamp, Result]] = dict(stored)
    names = {path: os.path.relpath(path, root) for path in paths}
    stamps = {path: file_stamp(path) for path in names}
    results = {
        path: cached[name][1]
        for path, name in names.items()
        if name in cached and cached[name][0] == stamps[path]
    }
    missing = [path for path in names if path not in results]
    for path, result in zip(missing, in_threads(missing, examine)):
        results[path] = result
        if (stamp := stamps[path]) is not None:
            cached[names[path]] = stamp, result
    if missing:
        write_cache(root, cache_name, terms, cached)
    return results


def in_threads(items: Sequence[Item], examine: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield the results of `examine` for the items in order, computed in threads."""
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


def reason_of(error: UnreadableInput | OSError) -> str:
    """Return a short reason for an unusable file."""
    strerror = getattr(error, "strerror", None)
    return f"cannot be read: {strerror or error}" if isinstance(error, OSError) else str(error)


def file_stamp(path: str) -> Stamp | None:
    """Return size and times of change of a file; None if it cannot be accessed."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_cache(path: str, cache_name: str, terms: Terms, kind: Any) -> Any:
    """Return the value of type `kind` stored for a path under these terms, or None."""
    file = str(_cache_path(path, cache_name))
    return _parsed_cache(file, file_stamp(file), json.dumps(terms), kind)


@lru_cache(maxsize=4)  # the splits of a set have one cache
def _parsed_cache(file: str, stamp: Stamp | None, terms: str, kind: Any) -> Any:
    """Parse a file of the cache, which must not be modified; None as in read_cache."""
    try:
        cached = json.loads(store.read_bytes(file, _CACHE_LIMIT))
        if cached["terms"] != json.loads(terms):
            return None
        return TypeAdapter(kind).validate_python(cached["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_cache(path: str, cache_name: str, terms: Terms, value: Any) -> None:
    """Store a JSON value about a path, and the terms for which it is valid."""
    cache_path = _cache_path(path, cache_name)
    try:
        store.make_folder(cache_path.parent)
        store.write_text(cache_path, json.dumps({"terms": terms, "value": value}))
    except OSError as error:
        # then files are decoded again next time
        _log.info("the check of %s is not cached: %s", printable(path), error)


def is_checked(root: str | Path) -> bool:
    """Whether files of a data set at this real path were decoded here before."""
    path = _cache_path(os.fspath(root), "")
    return any(path.parent.glob(f"{path.stem}*"))


def _cache_path(path: str, cache_name: str) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return store.cache_folder() / "checked" / f"{name}-{cache_name}.json"
