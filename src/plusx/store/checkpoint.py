"""Checkpoints: folders that are committed by one rename and in which any flipped bit is detected.

A checkpoint is a folder `step-00000120` with one safetensors file per group of tensors, state.json,
and manifest.json with the size and sha256 of every file and of itself.
"""

import contextlib
import errno
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plusx.errors import UserError
from plusx.store.canonical import json_bytes, parse_json
from plusx.store.files import (
    clean,
    flush_folder,
    make_folder,
    read_bytes,
    remove_temporary,
    temporary_name,
    with_path_in_errors,
    write_new,
)
from plusx.store.tensors import decode, encode


_STEP = re.compile(r"step-([0-9]{8,})(?:-([0-9]+))?")
_GROUP = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MANIFEST = "manifest.json"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: groups of tensors, plain values, and its folder."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Commit a checkpoint under `folder`, keep the newest `keep`, and return its path.

    Nothing is deleted before the new one has been read back and verified. Saving the same step
    again replaces it. The caller must hold the lock of the run.
    """
    folder = Path(folder)
    assert step >= 0, step
    assert keep >= 1, keep
    files = {}
    for group, group_tensors in tensors.items():
        assert _GROUP.fullmatch(group), group
        files[f"{group}.safetensors"] = encode(group_tensors)
    files[_STATE] = json_bytes(dict(values), f"state of step {step}")
    files[_MANIFEST] = _manifest(step, files)

    make_folder(folder)
    clean(folder)
    checkpoints = _checkpoints(folder)
    generations = [generation for at, generation, _ in checkpoints if at == step]
    name = f"step-{step:08d}" + (f"-{max(generations) + 1}" if generations else "")
    temporary = folder / temporary_name()
    with with_path_in_errors(folder / name, sum(map(len, files.values()))):
        try:
            os.mkdir(temporary, 0o755)
            for file, data in files.items():
                write_new(temporary / file, data)
            flush_folder(temporary)
            os.rename(temporary, folder / name)
        except BaseException:
            remove_temporary(temporary)
            raise
        flush_folder(folder)
        _retain(folder, step, keep)
    return folder / name


def load_checkpoint(folder: str | Path, strict: bool = False) -> Checkpoint | None:
    """Return the newest valid checkpoint under `folder`; None if there is none at all.

    An invalid one is skipped with a warning that names the file or, if `strict`, raises UserError;
    so does a folder whose checkpoints are all invalid. This only reads, so it may run next to the
    training process.
    """
    folder = Path(folder)
    while True:
        problems = []
        vanished = False
        for _, _, path in reversed(_checkpoints(folder)):
            try:
                return _read_checkpoint(path)
            except ValueError as error:
                if not path.exists():  # deleted by the training process meanwhile
                    vanished = True
                    continue
                if strict:
                    raise
                problems.append(str(error))
                warnings.warn(f"checkpoint skipped: {error}", stacklevel=2)
        if vanished:
            continue
        if problems:
            raise UserError(
                f"no checkpoint under {folder} is valid: {'; '.join(problems)}. "
                "Restore one, or delete them to start again"
            )
        return None


def read_checkpoints(folder: str | Path) -> Iterator[Checkpoint]:
    """Yield every valid checkpoint under `folder`, the oldest first; see `load_checkpoint`."""
    newest = {step: path for step, _, path in _checkpoints(Path(folder))}
    for path in newest.values():
        try:
            yield _read_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"checkpoint skipped: {error}", stacklevel=2)


def prune_checkpoints(folder: str | Path) -> None:
    """Delete all checkpoints except the newest. The caller must hold the lock of the run."""
    for _, _, path in _checkpoints(Path(folder))[:-1]:
        _remove_checkpoint(path)


def _manifest(step: int, files: Mapping[str, bytes]) -> bytes:
    body = {
        "format": 1,
        "step": step,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }
    digest = hashlib.sha256(json_bytes(body, _MANIFEST)).hexdigest()
    return json_bytes({**body, "sha256": digest}, _MANIFEST)


def _read_manifest(path: Path, step: int) -> dict[str, dict[str, Any]]:
    manifest_path = path / _MANIFEST
    try:
        data = read_bytes(manifest_path, 1 << 20)
    except FileNotFoundError:
        raise UserError(f"{manifest_path} is missing") from None
    try:
        manifest = parse_json(data, str(manifest_path))
        digest = manifest.pop("sha256")
        body = json_bytes(manifest, str(manifest_path))
        # compared as bytes, so that a flipped space or escape is detected
        is_canonical = json_bytes({**manifest, "sha256": digest}, str(manifest_path)) == data
        files: dict[str, dict[str, Any]] = manifest["files"]
        is_valid = (
            is_canonical
            and hashlib.sha256(body).hexdigest() == digest
            and manifest["format"] == 1
            and manifest["step"] == step
            and _STATE in files
            and all(map(_is_group_file, files.keys() - {_STATE}))
            and all(type(e["bytes"]) is int and type(e["sha256"]) is str for e in files.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest_path} is corrupt ({type(error).__name__}: {error})") from None
    if not is_valid:
        raise UserError(f"{manifest_path} is corrupt: its sha256 does not match")
    return files


def _is_group_file(name: str) -> bool:
    return bool(name.endswith(".safetensors") and _GROUP.fullmatch(name[: -len(".safetensors")]))


def _verified_files(path: Path, step: int) -> Iterator[tuple[str, bytes]]:
    for name, entry in _read_manifest(path, step).items():
        file_path = path / name
        try:
            data = read_bytes(file_path, entry["bytes"])
        except FileNotFoundError:
            raise UserError(f"{file_path} is missing") from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise UserError(f"{file_path} cannot be read: {error.strerror}") from None
        if len(data) != entry["bytes"]:
            raise UserError(
                f"{file_path} is corrupt: it has {len(data):,} bytes, not {entry['bytes']:,}"
            )
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise UserError(f"{file_path} is corrupt: its sha256 is not that of the manifest")
        yield name, data


def _read_checkpoint(path: Path) -> Checkpoint:
    match = _STEP.fullmatch(path.name)
    assert match, path
    step = int(match[1])
    groups = {}
    values = {}
    for name, data in _verified_files(path, step):
        if name == _STATE:
            values = parse_json(data, str(path / name))
        else:
            groups[name.removesuffix(".safetensors")] = decode(data, str(path / name))[0]
    return Checkpoint(step, groups, values, path)


def _checkpoints(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (step, generation, path) of the checkpoints under a folder, oldest first, without
    links."""
    checkpoints = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = _STEP.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                checkpoints.append((int(match[1]), int(match[2] or 1), Path(entry.path)))
    return sorted(checkpoints)


def _retain(folder: Path, step: int, keep: int) -> None:
    """Delete checkpoints except the newest `keep` steps, after verifying the one just written.
    Later steps than the one just written belong to a run that was resumed from an earlier step:
    they are deleted too."""
    checkpoints = _checkpoints(folder)
    new = max((entry for entry in checkpoints if entry[0] == step), key=lambda entry: entry[1])
    newest = {at: (at, generation, path) for at, generation, path in checkpoints if at <= step}
    retained = {newest[at] for at in sorted(newest)[-keep:]}
    removed = [entry for entry in checkpoints if entry not in retained]
    if not removed:
        return
    assert new in retained, (new, retained)
    try:
        for _ in _verified_files(new[2], step):
            pass
    except ValueError as error:
        raise OSError(
            errno.EIO, f"the disk returned other bytes than were written: {error}", str(new[2])
        ) from None
    for _, _, path in removed:
        _remove_checkpoint(path)


def _remove_checkpoint(path: Path) -> None:
    """Delete our files of a checkpoint; other files stay."""
    names = os.listdir(path)
    if all(name in (_MANIFEST, _STATE) or _is_group_file(name) for name in names):
        # renamed first, so that readers never see a partly deleted checkpoint, even after a crash
        temporary = path.parent / temporary_name()
        os.rename(path, temporary)
        path = temporary
    for name in sorted(names, key=lambda name: name != _MANIFEST):
        if name in (_MANIFEST, _STATE) or _is_group_file(name):
            os.unlink(path / name)
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
