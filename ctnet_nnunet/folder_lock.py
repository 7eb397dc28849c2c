"""One run at a time in a folder, also while commands of a run that was killed are still at work."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctnet_nnunet.errors import SetupError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there, nothing is promised
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
LOCK = ".lock"
_HELD = frozenset((errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES))
"""What the system says when another process has the lock; anything else says that there are none."""


@contextmanager
def folder_lock(folder: Path, remedy: str = "wait, end it, or give another --out") -> Iterator[int]:
    """Hold ``folder/.lock`` and yield its file descriptor, which child processes are to inherit.

    The lock belongs to the open file and not to a process: it is free when the last process that has it open ends. So
    a training that outlived a killed run still keeps a second one out. A file system without such locks is named in a
    warning, and nothing is held.

    Raises:
        SetupError: if another process holds it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder}: cannot be made a folder ({error.strerror}); name another one") from error
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    raise SetupError(f"{folder}: a run or one of its commands still works there; {remedy}") from error
                _warn(error)
        yield descriptor
    finally:
        os.close(descriptor)


def _warn(error: OSError) -> None:
    """Once a process: Python leaves out a warning of the same words and place."""
    warnings.warn(
        f"this file system has no locks ({error.strerror}): nothing keeps a second run out of a folder; start one at a "
        "time",
        stacklevel=1,
    )


def is_locked(folder: Path) -> bool:
    """Whether some process holds the folder's lock at this moment; False where there are no locks."""
    try:
        with folder_lock(folder):
            return False
    except SetupError:
        return True
