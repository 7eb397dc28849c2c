"""Before anything is trained or written: do all processes have the same versions and see the same data and results?"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.files import disk_errors

PACKAGES = ("torch", "nnunetv2", "ctnet_nnunet", "numpy")
SHARED_SECONDS = 20.0


@dataclass(frozen=True)
class Facts:
    """What a rank has and sees.

    Attributes:
        host: Its machine's name.
        versions: Of :data:`PACKAGES`.
        files: Name (below nnUNet_preprocessed, which may lie elsewhere on each machine) → hash of the content; None
            where there is no such file.
        cases: Folder, named likewise → file name → bytes; None where there is no such folder.
        shared: Whether it sees what rank 0 has written to the results folder.
    """

    host: str
    versions: Mapping[str, str]
    files: Mapping[str, str | None]
    cases: Mapping[str, Mapping[str, int] | None]
    shared: bool


def check_agreement(files: list[Path], folders: list[Path], results: Path) -> float:
    """Compare all ranks with rank 0.

    Args:
        files: Plans, dataset.json, splits.
        folders: Of preprocessed cases.
        results: nnUNet_results, which must be one folder for all.

    Returns:
        How many seconds the clock of the results' file system is ahead of rank 0's.

    Raises:
        CTNetError: A rank has another version, other data or other results; rank, machine and difference are named. Or
            rank 0 cannot write to the results folder.
    """
    token, ahead = _left_by_first(results)
    mine = Facts(
        socket.gethostname(),
        {name: metadata.version(name) for name in PACKAGES},
        {f"{file.parent.name}/{file.name}": _digest(file) for file in files},
        {f"{folder.parent.name}/{folder.name}": _sizes(folder) for folder in folders},
        _appears(token),
    )
    everyone = ranks.gathered_objects(mine)
    if ranks.rank() == 0:
        token.unlink(missing_ok=True)
    for rank, other in enumerate(everyone):
        if error := difference(everyone[0], other, f"rank {rank} on {other.host}", f"rank 0 on {everyone[0].host}"):
            raise error
    return ahead


def difference(first: Facts, other: Facts, name: str, first_name: str) -> CTNetError | None:
    """The first thing in which a rank differs from rank 0, as the error to raise."""
    for package, version in first.versions.items():
        if other.versions[package] != version:
            return SetupError(
                f"{name} has {package} {other.versions[package]}, {first_name} has {version}; install the same "
                "versions on all machines"
            )
    for file, digest in first.files.items():
        if other.files[file] != digest:
            how = "is there on one of them only" if None in (other.files[file], digest) else "differs"
            return DataError(f"{name} and {first_name} see different data: {file} {how}; {REMEDY}")
    for folder, sizes in first.cases.items():
        if other.cases[folder] != sizes:
            return DataError(
                f"{name} and {first_name} see different data: {_which(folder, sizes, other.cases[folder])}"
            )
    if not other.shared:
        return SetupError(
            f"{name} does not see what {first_name} writes to nnUNet_results; let it be one folder, shared by all "
            "machines: checkpoints are read and validation cases written by every process"
        )
    return None


REMEDY = "let nnUNet_preprocessed hold the same on all machines"


def _which(folder: str, first: Mapping[str, int] | None, other: Mapping[str, int] | None) -> str:
    if first is None or other is None:
        return f"{folder} is there on one of them only; {REMEDY}"
    names = sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
    how = "differs in size" if names[0] in first and names[0] in other else "is there on one of them only"
    return f"in {folder}, {names[0]} {how} ({len(names)} such files); {REMEDY}"


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _sizes(folder: Path) -> dict[str, int] | None:
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _left_by_first(results: Path) -> tuple[Path, float]:
    """A file that rank 0 leaves in the results folder, and how far that file's clock is ahead of rank 0's."""
    token = Path(ranks.from_first(str(results / f".ctnet_{uuid.uuid4().hex}")))
    ahead = 0.0
    if ranks.rank() == 0:
        with disk_errors(results):
            results.mkdir(parents=True, exist_ok=True)
            token.write_text("seen by every rank\n", encoding="utf-8")
            ahead = token.stat().st_mtime - time.time()
    return results / token.name, float(ranks.from_first(ahead))


def _appears(token: Path) -> bool:
    """Whether the file can be seen; network file systems may take a moment."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not token.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
