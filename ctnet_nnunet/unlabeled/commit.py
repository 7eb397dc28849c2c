"""How a case gets into its folder: one writer at a time, unfinished files aside, and the record last.

The lock is one that the system drops when its holder dies, so a killed command blocks nobody.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ctnet_nnunet.unlabeled.records import SUFFIXES

# File systems without locks (some Lustre and NFS mounts). Unique temporary names still keep files whole there; two
# commands may then do the same case twice.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


@contextmanager
def case_lock(folder: Path, case: str) -> Iterator[bool]:
    """Hold the lock of ``case`` in ``folder``; waits for another holder.

    Yields:
        True when the lock is held, False when the file system has none.
    """
    path = folder / ".locks" / case
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file stays: removing it would let a third process lock a new file of the same name.
    with path.open("a") as stream:
        held = _acquire(stream)
        try:
            yield held
        finally:
            if held:
                _release(stream)


@contextmanager
def partial_folder(folder: Path, case: str, locked: bool) -> Iterator[Path]:
    """A fresh folder below ``folder`` for unfinished files; what a killed holder of the lock left is cleared."""
    parent = folder / ".partial" / case
    if locked:
        shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            parent.rmdir()


def commit(partial: Path, folder: Path, case: str) -> None:
    """Move a finished case into place; without its record it does not count, so that goes first and comes last."""
    (folder / f"{case}.json").unlink(missing_ok=True)
    for suffix in (*SUFFIXES, ".json"):
        os.replace(partial / (case + suffix), folder / (case + suffix))


def sweep(folder: Path) -> None:
    """Clear what killed commands left behind; waits for a case that another command is at."""
    partial = folder / ".partial"
    for leftover in sorted(partial.iterdir()) if partial.is_dir() else ():
        with case_lock(folder, leftover.name) as held:
            if held:
                shutil.rmtree(leftover, ignore_errors=True)


if sys.platform == "win32":
    import msvcrt

    def _acquire(stream: IO[str]) -> bool:
        while True:
            try:
                stream.seek(0)
                msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                time.sleep(0.2)

    def _release(stream: IO[str]) -> None:
        stream.seek(0)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(stream: IO[str]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _release(stream: IO[str]) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)
