"""Processes that take one job at a time, so that one which dies takes a single, known job with it.

The standard pools either hang or lose all their jobs when the system kills a worker for its memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from ctnet_nnunet.errors import SetupError

J = TypeVar("J")
R = TypeVar("R")

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True)
class Death:
    """The end of a worker in the middle of a job."""

    exit_code: int | None

    def __str__(self) -> str:
        if self.exit_code == -9:
            return (
                "its process was killed, most likely for lack of memory; use fewer processes (-np 1) or crop the scan"
            )
        if self.exit_code is not None and self.exit_code < 0:
            return f"its process was ended by signal {-self.exit_code}"
        return f"its process ended with exit code {self.exit_code}"


def run_jobs(work: Callable[[J], R], jobs: Sequence[J], processes: int) -> Iterator[tuple[J, R | Death]]:
    """Run ``work(job)`` for every job and yield the results as they come.

    A job whose worker died runs once more at the end, alone, with all the memory to itself; only if it dies again
    is its :class:`Death` yielded. With ``processes=0`` all runs in this process.

    Raises:
        SetupError: a worker could not start at all.
    """
    if processes == 0:
        for job in jobs:
            yield job, work(job)
        return
    died: list[J] = []
    for job, result in _run_once(work, jobs, processes):
        if isinstance(result, Death) and processes > 1:
            died.append(job)
        else:
            yield job, result
    if died:
        yield from _run_once(work, died, 1)


class _Worker(Generic[J]):
    """One child process; ``job`` is what it works on, None while it starts or waits."""

    def __init__(self, work: Callable[[J], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the child does
        self.job: J | None = None
        self.started = False

    def receive(self) -> Any:
        """The child's next message; a :class:`Death` when it is no more."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Death(self.process.exitcode)

    def close(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()


def _run_once(work: Callable[[J], R], jobs: Sequence[J], processes: int) -> Iterator[tuple[J, R | Death]]:
    waiting = deque(jobs)
    workers = {w.connection: w for w in (_Worker[J](work) for _ in range(min(processes, len(jobs))))}
    try:
        while workers:
            for ready in wait(list(workers)):
                worker = workers[ready]  # type: ignore[index]
                message = worker.receive()
                if isinstance(message, Death):
                    workers.pop(worker.connection).close()
                    if not worker.started:
                        raise SetupError(_cannot_start(message))
                    if waiting:
                        replacement = _Worker[J](work)
                        workers[replacement.connection] = replacement
                if worker.job is not None:
                    job, worker.job = worker.job, None
                    yield job, message
                if not isinstance(message, Death):
                    worker.started = True
                    _hand_out(worker, waiting, workers)
    finally:
        for worker in workers.values():
            worker.close()


def _hand_out(worker: _Worker[J], waiting: deque[J], workers: dict[Connection, _Worker[J]]) -> None:
    """Give a free worker its next job, or send it home."""
    if waiting:
        worker.job = waiting.popleft()
        with suppress(OSError):  # a child that died meanwhile shows when its answer is read
            worker.connection.send(worker.job)
    else:
        workers.pop(worker.connection).close()


def _cannot_start(death: Death) -> str:
    return (
        f"a worker process could not start ({death}); a script that calls this needs "
        'if __name__ == "__main__":, or use processes=0 (-np 0) to work without extra processes'
    )


def _serve(connection: Connection, work: Callable[[J], Any]) -> None:
    """The child's loop: announce itself, then answer jobs until the parent's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    import SimpleITK as sitk

    if "torch" in sys.modules:  # one that comes later reads the variables above
        sys.modules["torch"].set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    connection.send(None)
    try:
        while True:
            connection.send(work(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
