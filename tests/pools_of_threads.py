"""nnU-Net without its worker processes, each of which would import torch before it does anything."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from typing import Any
from unittest import mock


def pools_of_threads() -> Any:
    """A context in which pools of spawned processes are pools of threads; processes asked for one by one are real."""
    real, threads = multiprocessing.get_context, _PoolsOfThreads()
    return mock.patch("multiprocessing.get_context", lambda how=None: threads if how == "spawn" else real(how))


class _PoolsOfThreads(SpawnContext):
    def Pool(self, *args: Any, **kwargs: Any) -> Any:
        return ThreadPool(*args, **kwargs)
