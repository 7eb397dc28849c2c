"""One command in a process of its own, its output in a log file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ctnet_nnunet.errors import SetupError

POLL_SECONDS = 0.25
TERMINATION_SECONDS = 10.0


@dataclass(frozen=True)
class Workplace:
    """Where and with what surroundings commands run; ``inherited`` is a file descriptor that children keep open."""

    folder: Path
    environment: dict[str, str]
    inherited: int | None = None


def find_program(name: str) -> str:
    """The program of this Python installation, whatever comes first on PATH.

    Raises:
        SetupError: if it is installed in neither place.
    """
    # The folder of sys.executable is not resolved: in a virtual environment it is a link to another installation.
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise SetupError(f"the command {name} is not installed beside {sys.executable}; install ctnet_nnunet there")
    return found


def run_command(
    command: tuple[str, ...],
    workplace: Workplace,
    log: Path,
    while_running: Callable[[], None],
    patience: float = TERMINATION_SECONDS,
) -> tuple[float, int]:
    """Run ``command`` to its end; returns seconds and exit status (negative: the signal that ended it).

    ``while_running`` is called a few times a second. If this process is interrupted, or ``while_running`` raises, the
    command gets SIGTERM and ``patience`` seconds to end by itself (a training writes its checkpoint); then it and all
    its children are killed: none is left behind to write into the folder.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("ab") as output:
        with _held_back() as deliver, _not_for_children():
            process = subprocess.Popen(
                [find_program(command[0]), *command[1:]],
                cwd=workplace.folder,
                env=workplace.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if workplace.inherited is None else (workplace.inherited,),
            )
        try:
            deliver()
            while True:
                try:
                    status = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    while_running()
        except BaseException:
            _end(process, patience)
            raise
    return time.monotonic() - started, status


@contextmanager
def _held_back() -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM that arrive inside wait for a call of the function: a start is not interrupted half-way."""
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield lambda: None
        return
    arrived: list[int] = []
    # What is ignored (behind nohup) stays so for children.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in numbers}

    def deliver() -> None:
        for number in arrived:
            signal.raise_signal(number)

    try:
        yield deliver
    finally:
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _not_for_children() -> Iterator[None]:
    """Children started inside have SIGUSR2 blocked: SLURM sends it to every process of a job, not to this one alone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    # Not the group at first: a training whose data loaders were gone could not write its checkpoint.
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    finally:  # a second Ctrl-C ends the patience
        # Worker processes may outlive their parent: the whole group goes, also when the parent has ended.
        _signal_group(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.terminate()
    except ProcessLookupError:
        pass


def last_lines(log: Path, count: int = 15) -> list[str]:
    """The last lines of a log that hold text."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return [line.rstrip() for line in lines if line.strip()][-count:]


@contextmanager
def interruptible() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that a running command is ended with this one."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
