"""The dataset folder that a conversion makes: it appears as a whole or not at all, and replaces only what it knows."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.folder_lock import HAS_LOCKS, LOCK, folder_lock

RECORD = "conversion.json"
SPLITS = "splits_final.json"
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Target:
    """``raw / name`` is the dataset; ``preprocessed`` is its folder there, if it exists already."""

    raw: Path
    name: str
    preprocessed: Path | None
    force: bool

    @property
    def dataset(self) -> Path:
        return self.raw / self.name

    @property
    def refused(self) -> Path:
        """Where page and pictures go when no case could be converted."""
        return self.raw / f".{self.name}.refused"


def locate(dataset_id: int, name: str, out: Path | None, force: bool) -> Target:
    """Check the id and the name before any work.

    Raises:
        SetupError: ``out`` is not given and nnUNet_raw is not set or no folder.
        DataError: a name that nnU-Net does not take; an id that is taken; a dataset that exists, without ``force``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise DataError(f"--name {name!r}: use letters, digits, - and _ alone, as in Hippocampus")
    folders = {variable: Path(value) for variable in _FOLDERS if (value := os.environ.get(variable))}
    if out is not None:
        folders["nnUNet_raw"] = out
    raw = folders.get("nnUNet_raw")
    if raw is None or not (raw.is_dir() or (out is not None and not raw.exists())):
        where = "is not set" if raw is None else f"= {raw} is no folder"
        raise SetupError(f"nnUNet_raw {where}; export it as nnU-Net's installation asks, or give --out FOLDER")
    full = f"Dataset{dataset_id:03d}_{name}"
    for folder in folders.values():
        other = next((p.name for p in sorted(folder.glob(f"Dataset{dataset_id:03d}_*")) if p.name != full), None)
        if other:
            raise DataError(f"dataset id {dataset_id} is taken by {folder / other}; choose another with -d")
    preprocessed = folders.get("nnUNet_preprocessed", Path()) / full
    target = Target(raw, full, preprocessed if preprocessed.is_dir() else None, force)
    _require_replaceable(target)
    return target


def _require_replaceable(target: Target) -> None:
    if target.preprocessed and (target.preprocessed / SPLITS).exists() and not target.force:
        raise DataError(f"{target.preprocessed / SPLITS}: exists; --force replaces it")
    if not target.dataset.exists():
        return
    if not target.force:
        raise DataError(f"{target.dataset}: exists; --force converts it anew, or choose another id with -d")
    try:
        known = set(json.loads((target.dataset / RECORD).read_text(encoding="utf-8"))["files"]) | {RECORD}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{target.dataset}: was not written by ctnet convert; move it away first") from None
    for path in sorted(target.dataset.rglob("*")):
        if path.is_file() and path.relative_to(target.dataset).as_posix() not in known:
            raise DataError(f"{path}: was not written by ctnet convert and would be lost; move it away first")


@contextmanager
def partial_dataset(target: Target) -> Iterator[Path]:
    """A folder beside the dataset's for unfinished work, which nnU-Net does not see; it is gone afterwards.

    What a killed conversion left there is removed first: its lock went with it.

    Raises:
        SetupError: another conversion of this dataset runs.
        DataError: the folder exists, on a system without locks.
    """
    partial = target.raw / f".{target.name}.partial"
    left = partial.exists()
    if left and not HAS_LOCKS:
        raise DataError(f"{partial}: exists; if no conversion of this dataset runs, remove the folder")
    with folder_lock(partial):
        if left:
            _clear(partial)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _clear(partial: Path) -> None:
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def commit(partial: Path, target: Target) -> None:
    """Put the finished dataset in its place; an older one goes only when the new one is there."""
    old = target.raw / f".{target.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    (partial / LOCK).unlink(missing_ok=True)  # held to the end all the same: a lock belongs to the open file
    if target.dataset.exists():
        target.dataset.rename(old)
    partial.rename(target.dataset)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(target.refused, ignore_errors=True)


def write_json(file: Path, content: Any) -> None:
    """Write JSON as a whole or not at all; the same content gives the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        Path(temporary).chmod(0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
