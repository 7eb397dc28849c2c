"""Locks where another run holds them, and where the file system has none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ctnet_nnunet import folder_lock as module
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.folder_lock import HAS_LOCKS, folder_lock, is_locked

pytestmark = pytest.mark.skipif(not HAS_LOCKS, reason="no flock here")


def test_a_held_lock_keeps_others_out(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(SetupError, match="still works there; wait for it"), folder_lock(tmp_path, "wait for it"):
            pass
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks .*start one at a time"), folder_lock(tmp_path) as descriptor:
        assert descriptor > 2
    with pytest.warns(UserWarning, match="has no locks"):
        assert not is_locked(tmp_path)
