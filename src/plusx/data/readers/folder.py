"""A folder of class folders: ROOT/train/CLASS/..., ROOT/val, ROOT/test, or ROOT/CLASS/...

Either may also be one folder deeper. Images are recognised by content. Hidden files and folders are
ignored, links are followed inside the root only, every file is used once, and only regular files
are opened.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from plusx.data.image_file import ENDINGS, is_image, unsupported
from plusx.data.readers.listing import Listing, class_name, refuse_similar_names
from plusx.data.readers.verdicts import Entry, usable_entries
from plusx.data.splits import SPLIT_NAMES, split_of
from plusx.errors import UserError, did_you_mean, printable


_LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx"))
_DEEPEST = 50
_BESIDE_CLASSES = "outside the class folders"
_SHOWN = 3  # class folders named in a reason
_PEEKED = 1000  # files of a class folder that are checked to recognise it
NEW_FOLDER = "a new folder"
OUTPUT_FOLDER = "a folder that plusx wrote"
# files in the folders that plusx writes: runs, galleries, predictions, explanations
_OUTPUTS = frozenset(
    ("recipe.toml", "environment.json", "gallery.json", "predictions.json", "explanation.json")
)
_KINDS = (
    (stat.S_ISFIFO, "a pipe, not a regular file"),
    (stat.S_ISSOCK, "a socket, not a regular file"),
    (stat.S_ISBLK, "a device, not a regular file"),
    (stat.S_ISCHR, "a device, not a regular file"),
)

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderListing(Listing):
    """The files below a root, each with its class, its state and the reason.

    classes: the sorted names of the training class folders, or of all if splits may differ
    folders: the class folders, and the folders below them
    """

    folders: tuple[str, ...]


def recognise_folder(path: str) -> str:
    """Return why scan can read a path, or ""."""
    classes = _class_folders(path)
    names = [{class_name(name).casefold() for name in folders} for folders in classes.values()]
    if len(names) > 1 and not set.intersection(*names):
        return ""  # validation classes must be training classes
    return _described(classes, "class folders")


def recognise_people(path: str) -> str:
    """Return why the folders in a path can be people, or ""."""
    classes = _class_folders(path)
    names = [name for folders in classes.values() for name in folders]
    return _described(classes, "one folder per person") if len(names) == len(set(names)) else ""


def _class_folders(root: str) -> dict[str, dict[str, str]]:
    """Return the possible class folders by their split folder, or ""."""
    folders = _folders_in(root)
    try:
        splits = _splits(folders, root)
    except UserError:  # which scan reports
        splits = {}
    if not splits:
        within = _within(folders)
        return {"": folders} if within is None else _class_folders(within)
    ordered = sorted(splits, key=lambda name: list(SPLIT_NAMES.values()).index(splits[name]))
    return {name: _folders_in(folders[name]) for name in ordered}


def _within(folders: dict[str, str]) -> str | None:
    """Return the only folder, if it has several folders and no images; else None."""
    if len(folders) != 1:
        return None
    (path,) = folders.values()
    inner, has_images = _content(path)
    return path if len(inner) > 1 and not has_images else None


def _folders_in(root: str) -> dict[str, str]:
    if not os.path.isdir(root):
        return {}
    try:
        with os.scandir(root) as items:
            return {i.name: i.path for i in items if i.is_dir() and not _is_litter(i.name)}
    except OSError:
        return {}


def _described(classes: dict[str, dict[str, str]], kind: str) -> str:
    """Describe the class folders; "" if none has an image."""
    paths = [path for folders in classes.values() for path in folders.values()]
    if not any(map(_has_image, paths)):
        return ""
    names = sorted({printable(name) for folders in classes.values() for name in folders})
    where = "".join(f"{printable(name)}, " for name in classes if name)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{where}with {kind} ({shown})" if where else f"{kind} ({shown})"


def _has_image(folder: str) -> bool:
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return any(
        os.path.splitext(path)[1].lower() in ENDINGS or begins_as_image(path)
        for path in islice(paths, _PEEKED)
    )


def scan(
    root: str | Path, searched: Collection[str] | None = None, *, same_classes: bool = True
) -> FolderListing:
    """List a folder of class folders. Nothing is decoded; only the first bytes of files are read.

    searched: the only folders below the split folders that are listed; others become entries with
        the state "ignored" and the reason NEW_FOLDER
    same_classes: whether validation and test classes must be training classes
    Raises UserError for a missing or empty root, one without class folders, and class names that
    differ only in case.
    """
    top = os.path.realpath(root)
    shown = printable(root)
    if not os.path.isdir(top):
        raise UserError(f"{shown} is {'not a folder' if os.path.exists(top) else 'missing'}")
    walk = _Walk(top, searched)
    folders = walk.folders(top, "", "")
    for entry in walk.entries:
        if split_of(name := os.path.basename(entry.path)):
            reason = entry.reason if entry.state == "refused" else "a file"
            raise UserError(f"{shown}: the split folder {printable(name)} is {reason}")
    splits = _splits(folders, shown)
    if not splits and searched is None and (within := _within(folders)) is not None:
        listing = scan(within, searched, same_classes=same_classes)
        name = printable(os.path.basename(within))
        warning = f"class folders are read from {name}, the only folder in {shown}"
        return replace(listing, warnings=(warning, *listing.warnings))
    if not splits and searched is None:
        _refuse_nested(folders, shown)
    class_folders: dict[str, dict[str, str]] = {}
    split_folders = {"": shown}
    for name, path in folders.items():
        if not splits:
            class_folders.setdefault("", {})[name] = path
        elif (split := splits.get(name)) is not None:
            inner = walk.folders(path, "", split)
            if len(inner) == 1 and split_of(*inner) == split:  # training_set/training_set
                (path,) = inner.values()
                inner = walk.folders(path, "", split)
            class_folders[split] = inner
            split_folders[split] = printable(os.path.join(shown, os.path.relpath(path, top)))
        else:
            walk.add(path, "", "", "ignored", "beside the split folders")
    for split, paths in class_folders.items():
        for name, path in paths.items():
            walk.walk(path, class_name(name), split)
    walk.follow()
    names = {
        split: {class_name(name) for name in paths} - walk.outputs(split)
        for split, paths in class_folders.items()
    }
    if not any(names.values()):
        count = sum(entry.reason == _BESIDE_CLASSES for entry in walk.entries)
        files = f"{count:,} file{'s' * (count != 1)}"
        direct = "; it is empty" if not walk.entries else ""
        if count:
            direct = f"; {files} directly in it: a CSV with the columns path,label assigns classes"
        raise UserError(
            f"{shown} has no class folders: images are expected in {shown}/CLASS/, or in "
            f"{shown}/train/CLASS/{direct}"
        )
    train = names.get("train", names.get("", set())) if same_classes else set()
    for split, classes in names.items():
        where = split_folders[split]
        if not classes:
            raise UserError(f"{where} is empty: it has no class folders")
        refuse_similar_names(sorted(classes | train), shown if train else where)
        if train and (unknown := sorted(classes - train)):
            raise UserError(
                f"{where}: the class {unknown[0]!r} is not a training class"
                f"{did_you_mean(unknown[0], train)}"
            )
    beside = [entry for entry in walk.entries if splits and not entry.split]
    return FolderListing(
        root=top,
        warnings=tuple(usable_entries(beside, top, "skip")[1]),
        splits=tuple(sorted(set(splits.values()))),
        classes=tuple(sorted(train or set().union(*names.values()))),
        entries=tuple(sorted(walk.entries, key=lambda e: (e.split, e.label, e.path))),
        folders=tuple(sorted(walk.visited.values())),
    )


def scan_images(path: str | Path) -> list[Entry]:
    """Return every image in a folder without classes, by the same rules, ordered by name.

    Paths begin with `path`. A single file is an entry, whatever its name.
    """
    if not os.path.isdir(path):
        return [Entry(os.fspath(path), "")]
    top = os.path.realpath(path)
    walk = _Walk(top)
    walk.walk(top, "", "")
    walk.follow()
    prefix = os.fspath(path)
    entries = [
        entry._replace(
            path=os.path.normpath(os.path.join(prefix, os.path.relpath(entry.path, top)))
        )
        for entry in walk.entries
    ]
    return sorted(entries, key=lambda entry: entry.path)


def _splits(folders: dict[str, str], shown: str) -> dict[str, str]:
    """Return the split folders: the usual names, if one is `train` or there are no others."""
    splits = {name: split for name in folders if (split := split_of(name))}
    if len(splits) < len(folders):
        train = [_content(folders[name]) for name, split in splits.items() if split == "train"]
        if not any(inner or not has_images for inner, has_images in train):
            return {}  # "train" may be a class, the vehicle
    for split in set(splits.values()):
        names = sorted(name for name in splits if splits[name] == split)
        if len(names) > 1:
            raise UserError(f"{shown} has {' and '.join(names)}: one folder per split is expected")
    return splits


def _refuse_nested(folders: dict[str, str], shown: str) -> None:
    """Raise UserError if all class folders contain the same folders.

    Then one of the two levels probably consists of splits.
    """
    common: set[str] | None = None
    for path in folders.values():
        inner, has_images = _content(path)
        common = inner if common is None else common & inner
        if has_images or len(common) < 2:
            return
    if common is not None and len(folders) > 1:
        outer_names, inner_names = (
            ", ".join(map(printable, sorted(names)[:3])) + (", ..." if len(names) > 3 else "")
            for names in (folders, common)
        )
        raise UserError(
            f"{shown}: the folders {outer_names} contain the same folders ({inner_names}), so it "
            f"is unclear which ones are classes: name the split folders train, val and test, as in "
            f"{shown}/train/CLASS"
        )


def _content(path: str) -> tuple[set[str], bool]:
    """Return the names of the folders directly in a folder, and whether it has images."""
    inner, has_images = set(), False
    with contextlib.suppress(OSError), os.scandir(path) as items:
        for item in items:
            if _is_litter(item.name):
                continue
            if item.is_dir():
                inner.add(item.name)
            else:
                has_images |= os.path.splitext(item.name)[1].lower() in ENDINGS
    return inner, has_images


@dataclass
class _Walk:
    """Collects entries: first real files and folders, then the targets of links."""

    root: str
    searched: Collection[str] | None = None
    entries: list[Entry] = field(default_factory=list)
    files: dict[Identity, str] = field(default_factory=dict)
    visited: dict[Identity, str] = field(default_factory=dict)
    links: list[tuple[str, str, str, int]] = field(default_factory=list)

    def add(self, path: str, label: str, split: str, state: str, reason: str) -> None:
        assert state in ("used", "refused", "ignored")
        self.entries.append(Entry(path, label, state, reason, split=split))  # type: ignore[arg-type]

    def folders(self, path: str, label: str, split: str) -> dict[str, str]:
        """Return the folders directly in `path`, by name; record everything else as ignored."""
        folders = {}
        for item in self._listed(path, label, split):
            if item.is_symlink():
                target = self._target(item.path, label, split)
                if target is not None and os.path.isdir(target):
                    if self._above(target, item.path):
                        self.add(item.path, label, split, "refused", "a link to a folder above it")
                    else:
                        folders[item.name] = item.path
                elif target is not None:
                    self.add(item.path, label, split, "ignored", _BESIDE_CLASSES)
            elif item.is_dir(follow_symlinks=False):
                folders[item.name] = item.path
            else:
                self.add(item.path, label, split, "ignored", _BESIDE_CLASSES)
        return folders

    def walk(self, path: str, label: str, split: str, depth: int = 0) -> None:
        """Add everything below a class folder; links are queued for `follow`."""
        if os.path.islink(path):
            self.links.append((path, label, split, depth))
            return
        if self.searched is not None and path not in self.searched:
            self.add(path, label, split, "ignored", NEW_FOLDER)
            return
        if depth > _DEEPEST:
            self.add(path, label, split, "refused", f"nested deeper than {_DEEPEST} folders")
            return
        self.visited[_identity(os.stat(path))] = path
        items = list(self._listed(path, label, split))
        if any(item.name in _OUTPUTS for item in items):
            self.add(path, label, split, "ignored", OUTPUT_FOLDER)
            return
        for item in items:
            if item.is_symlink():
                self.links.append((item.path, label, split, depth + 1))
            elif item.is_dir(follow_symlinks=False):
                self.walk(item.path, label, split, depth + 1)
            else:
                self._file(item.path, label, split)

    def outputs(self, split: str) -> set[str]:
        """Return the class folders of a split with nothing but output of plusx."""
        entries = [entry for entry in self.entries if entry.split == split]
        written = {entry.label for entry in entries if entry.reason == OUTPUT_FOLDER}
        return written - {entry.label for entry in entries if entry.state != "ignored"}

    def follow(self) -> None:
        """Add the targets of the queued links that are inside the root and not added yet."""
        while self.links:
            links, self.links = self.links, []
            for path, label, split, depth in links:
                target = self._target(path, label, split)
                if target is None:
                    continue
                if not os.path.isdir(target):
                    self._file(path, label, split)
                elif self._above(target, path):
                    self.add(path, label, split, "refused", "a link to a folder above it")
                elif (twin := self.visited.get(_identity(os.stat(target)))) is not None:
                    self.add(path, label, split, "ignored", f"the same as {self._shown(twin)}")
                else:
                    self.walk(target, label, split, depth)

    def _listed(self, path: str, label: str, split: str) -> Iterator[os.DirEntry[str]]:
        """Yield the entries of a folder by name; hidden ones are recorded as ignored."""
        try:
            with os.scandir(path) as items:
                listed = sorted(items, key=lambda item: item.name)
        except OSError as error:
            self.add(path, label, split, "refused", f"cannot be read: {error.strerror}")
            return
        for item in listed:
            if _is_litter(item.name):
                self.add(item.path, label, split, "ignored", "hidden")
            else:
                yield item

    def _target(self, path: str, label: str, split: str) -> str | None:
        """Return the target of a link if it is inside the root; record a problem otherwise."""
        try:
            target = os.path.realpath(path, strict=True)
        except FileNotFoundError:
            self.add(path, label, split, "refused", "a link to nothing")
            return None
        except OSError:
            self.add(path, label, split, "refused", "a link that leads in a circle")
            return None
        if not target.startswith(os.path.join(self.root, "")) and target != self.root:
            self.add(path, label, split, "refused", "a link that leaves the folder")
            return None
        return target

    def _above(self, target: str, path: str) -> bool:
        above = os.path.realpath(os.path.dirname(path))
        return above == target or above.startswith(os.path.join(target, ""))

    def _file(self, path: str, label: str, split: str) -> None:
        try:
            status = os.stat(path)
        except OSError as error:
            self.add(path, label, split, "refused", f"cannot be read: {error.strerror}")
            return
        for is_kind, reason in _KINDS:
            if is_kind(status.st_mode):
                self.add(path, label, split, "refused", reason)
                return
        twin = self.files.setdefault(_identity(status), path)
        if twin != path:
            self.add(path, label, split, "ignored", f"the same as {self._shown(twin)}")
        elif (problem := unsupported(path)) is not None:
            self.add(path, label, split, "refused", problem)
        elif os.path.splitext(path)[1].lower() in ENDINGS or begins_as_image(path):
            self.add(path, label, split, "used", "")
        else:
            self.add(path, label, split, "ignored", "not an image")

    def _shown(self, path: str) -> str:
        return printable(path, self.root)


def _is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or was created by the operating system."""
    return name.startswith(".") or name.casefold() in _LITTER


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def begins_as_image(path: str) -> bool:
    """Whether a file begins like an image of a known format."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return is_image(file.read(32))
    except OSError:
        return False
