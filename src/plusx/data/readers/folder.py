"""A folder of class folders: ROOT/train/CLASS/..., ROOT/val, ROOT/test, or ROOT/CLASS/...

A file counts by its content. Hidden files and folders are ignored, links are followed inside the
root only, every real file counts once, and what is no regular file is never opened.
"""

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plusx.data.image_file import is_image, printable
from plusx.data.readers.listing import Listing, refuse_similar_names
from plusx.data.readers.verdicts import Entry
from plusx.data.splits import SPLIT_NAMES
from plusx.errors import UserError


_ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
_DEEPEST = 50
NEW_FOLDER = "a folder that was not there"
_KINDS = (
    (stat.S_ISFIFO, "a pipe, no regular file"),
    (stat.S_ISSOCK, "a socket, no regular file"),
    (stat.S_ISBLK, "a device, no regular file"),
    (stat.S_ISCHR, "a device, no regular file"),
)

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderListing(Listing):
    """What lies under a root: every file once, with its class, its state and the reason.

    `classes` are the names of the class folders of what trains, sorted. `folders` are those that
    were listed below the class folders, and these.
    """

    folders: tuple[str, ...]


def scan(root: str | Path, known: Collection[str] | None = None) -> FolderListing:
    """List a folder of class folders; nothing is decoded, and nothing but heads of files is read.

    known: the only folders to look into below the split folders; others are entries of state
    "ignored" whose reason is NEW_FOLDER.
    Raises UserError for a missing or empty root, one without class folders, classes whose names
    differ in case only, and classes that validate or test without training.
    """
    top = os.path.realpath(root)
    shown = printable(root)
    if not os.path.isdir(top):
        raise UserError(f"{shown} is {'no folder' if os.path.exists(top) else 'missing'}")
    walk = _Walk(top, known)
    folders = walk.folders(top, "", "")
    parts = _parts(folders, shown)
    found: dict[str, dict[str, str]] = {}
    for name, path in folders.items():
        if not parts:
            found.setdefault("", {})[name] = path
        elif name in parts:
            found[parts[name]] = walk.folders(path, "", parts[name])
        else:
            walk.add(path, "", "", "ignored", "beside the split folders")
    for part, named in found.items():
        for name, path in named.items():
            walk.walk(path, printable(name), part)
    walk.follow()
    names = {part: tuple(sorted(map(printable, classes))) for part, classes in found.items()}
    learned = names.get("train", names.get("", ()))
    _check_classes(shown, names, learned)
    classes = learned or tuple(sorted({name for part in names.values() for name in part}))
    order = sorted(walk.entries, key=lambda entry: (entry.split, entry.label, entry.path))
    return FolderListing(
        root=top,
        splits=tuple(sorted(set(parts.values()))),
        classes=classes,
        entries=tuple(order),
        folders=tuple(sorted(walk.seen.values())),
    )


def scan_images(path: str | Path) -> list[Entry]:
    """Every image below a folder without classes, by the same rules, in the order of the names.

    Paths begin as `path` does. A single file is an entry of its own, whatever its name.
    """
    if not os.path.isdir(path):
        return [Entry(os.fspath(path), "")]
    top = os.path.realpath(path)
    walk = _Walk(top)
    walk.walk(top, "", "")
    walk.follow()
    given = os.fspath(path)
    entries = [
        entry._replace(path=os.path.normpath(os.path.join(given, os.path.relpath(entry.path, top))))
        for entry in walk.entries
    ]
    return sorted(entries, key=lambda entry: entry.path)


def _parts(folders: dict[str, str], shown: str) -> dict[str, str]:
    """The split folders: those with the usual names, if one is `train` or there are no others."""
    parts = {name: SPLIT_NAMES[name] for name in folders if name in SPLIT_NAMES}
    if "train" not in parts and len(parts) < len(folders):
        return {}
    for part in set(parts.values()):
        names = sorted(name for name, meant in parts.items() if meant == part)
        if len(names) > 1:
            raise UserError(f"{shown} has {' and '.join(names)}: one folder a split")
    return parts


def _check_classes(shown: str, names: dict[str, tuple[str, ...]], learned: tuple[str, ...]) -> None:
    if not any(names.values()):
        raise UserError(
            f"{shown} has no class folders: images are looked for in {shown}/CLASS/, or in "
            f"{shown}/train/CLASS/"
        )
    for part, classes in names.items():
        where = os.path.join(shown, part)
        if not classes:
            raise UserError(f"{where} is empty: it has no class folders")
        refuse_similar_names(classes, where)
        unknown = sorted(set(classes) - set(learned))
        if unknown and learned:
            raise UserError(f"{where}: the class {unknown[0]!r} is not among those that train")


@dataclass
class _Walk:
    """Collects entries: first what really lies there, then what links lead to."""

    root: str
    known: Collection[str] | None = None
    entries: list[Entry] = field(default_factory=list)
    files: dict[Identity, str] = field(default_factory=dict)
    seen: dict[Identity, str] = field(default_factory=dict)
    links: list[tuple[str, str, str, int]] = field(default_factory=list)

    def add(self, path: str, label: str, part: str, state: str, reason: str) -> None:
        assert state in ("used", "refused", "ignored")
        self.entries.append(Entry(path, label, state, reason, split=part))  # type: ignore[arg-type]

    def folders(self, path: str, label: str, part: str) -> dict[str, str]:
        """The folders (name: path) directly under `path`; everything else there is no class."""
        found = {}
        for item in self._listed(path, label, part):
            if item.is_symlink():
                target = self._target(item.path, label, part)
                if target is not None and os.path.isdir(target):
                    if self._above(target, item.path):
                        self.add(item.path, label, part, "refused", "a link to a folder above it")
                    else:
                        found[item.name] = item.path
                elif target is not None:
                    self.add(item.path, label, part, "ignored", "outside the class folders")
            elif item.is_dir(follow_symlinks=False):
                found[item.name] = item.path
            else:
                self.add(item.path, label, part, "ignored", "outside the class folders")
        return found

    def walk(self, path: str, label: str, part: str, depth: int = 0) -> None:
        """Everything below one class folder; links wait for `follow`."""
        if os.path.islink(path):
            self.links.append((path, label, part, depth))
            return
        if self.known is not None and path not in self.known:
            self.add(path, label, part, "ignored", NEW_FOLDER)
            return
        if depth > _DEEPEST:
            self.add(path, label, part, "refused", f"nested deeper than {_DEEPEST} folders")
            return
        self.seen[_identity(os.stat(path))] = path
        for item in self._listed(path, label, part):
            if item.is_symlink():
                self.links.append((item.path, label, part, depth + 1))
            elif item.is_dir(follow_symlinks=False):
                self.walk(item.path, label, part, depth + 1)
            else:
                self._file(item.path, label, part)

    def follow(self) -> None:
        """What links lead to, inside the root and not yet seen."""
        while self.links:
            links, self.links = self.links, []
            for path, label, part, depth in links:
                target = self._target(path, label, part)
                if target is None:
                    continue
                if not os.path.isdir(target):
                    self._file(path, label, part)
                elif self._above(target, path):
                    self.add(path, label, part, "refused", "a link to a folder above it")
                elif (twin := self.seen.get(_identity(os.stat(target)))) is not None:
                    self.add(path, label, part, "ignored", f"the same as {self._shown(twin)}")
                else:
                    self.walk(target, label, part, depth)

    def _listed(self, path: str, label: str, part: str) -> Iterator[os.DirEntry[str]]:
        """What lies in a folder, by name; what is hidden is noted and left out."""
        try:
            with os.scandir(path) as items:
                listed = sorted(items, key=lambda item: item.name)
        except OSError as error:
            self.add(path, label, part, "refused", f"cannot be read: {error.strerror}")
            return
        for item in listed:
            if item.name.startswith(".") or item.name.casefold() in _LITTER:
                self.add(item.path, label, part, "ignored", "hidden")
            else:
                yield item

    def _target(self, path: str, label: str, part: str) -> str | None:
        """Where a link leads, if that is inside the root."""
        try:
            target = os.path.realpath(path, strict=True)
        except FileNotFoundError:
            self.add(path, label, part, "refused", "a link to nothing")
            return None
        except OSError:
            self.add(path, label, part, "refused", "a link that leads in a circle")
            return None
        if not target.startswith(os.path.join(self.root, "")) and target != self.root:
            self.add(path, label, part, "refused", "a link that leaves the folder")
            return None
        return target

    def _above(self, target: str, path: str) -> bool:
        above = os.path.realpath(os.path.dirname(path))
        return above == target or above.startswith(os.path.join(target, ""))

    def _file(self, path: str, label: str, part: str) -> None:
        try:
            found = os.stat(path)
        except OSError as error:
            self.add(path, label, part, "refused", f"cannot be read: {error.strerror}")
            return
        for is_kind, reason in _KINDS:
            if is_kind(found.st_mode):
                self.add(path, label, part, "refused", reason)
                return
        twin = self.files.setdefault(_identity(found), path)
        if twin != path:
            self.add(path, label, part, "ignored", f"the same as {self._shown(twin)}")
        elif os.path.splitext(path)[1].lower() in _ENDINGS or _begins_as_image(path):
            self.add(path, label, part, "used", "")
        else:
            self.add(path, label, part, "ignored", "no image")

    def _shown(self, path: str) -> str:
        return printable(path, self.root)


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _begins_as_image(path: str) -> bool:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return is_image(file.read(32))
    except OSError:
        return False
