"""Run one step of a chain on this machine: its lock, its log, its record; the same here and inside a SLURM job."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.cluster.beginnings import note_beginning
from ctnet_nnunet.cluster.reason import read_end, reason_of
from ctnet_nnunet.cluster.record import Record, log_file, now, read_record, write_record
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.folder_lock import folder_lock, is_locked
from ctnet_nnunet.process import Workplace, run_command
from ctnet_nnunet.shim_path import VARIABLE, with_shim

PATIENCE = 60.0
"""Seconds that a command gets, once it is told to stop, to write its checkpoint."""
LOCKS = "locks"


class StoppedError(Exception):
    """The step was told to stop."""


@dataclass(frozen=True)
class Place:
    """Where a step runs.

    Attributes:
        folder: The chain's.
        job: SLURM's number, empty here.
        patience: As :data:`PATIENCE`.
    """

    folder: Path
    job: str = ""
    patience: float = PATIENCE


def run_step(step: Step, place: Place, while_running: Callable[[], None]) -> Record:
    """Run a step to its end and keep the record; a step that is finished by now is left alone.

    ``while_running`` is called a few times a second; when it raises, the command is told to write its checkpoint.

    Raises:
        SetupError: Another process works on this step.
    """
    with folder_lock(lock_folder(place.folder, step), "wait, or end it (`ctnet status` shows it)") as lock:
        before = read_record(place.folder, step.name)
        if step.finished:  # by hand, or by a start that was stopped in its last moment
            record = Record(step.name, socket.gethostname(), now(), "", place.job).finished(0, "")
            write_record(place.folder, record)
            return record
        log = log_file(place.folder, step.name)
        record = Record(
            step.name,
            socket.gethostname(),
            now(),
            shlex.join(step.command()),
            place.job,
            starts=1 + (before.starts if before and before.job == place.job and place.job else 0),
            offset=log.stat().st_size if log.is_file() else 0,
        )
        write_record(place.folder, record)
        note_beginning(place.folder, step)
        workplace = Workplace(place.folder, step_environment(step.processes), lock if os.name == "posix" else None)
        try:
            _, status = run_command(step.command(), workplace, log, while_running, place.patience)
        except BaseException:
            write_record(place.folder, record.finished(75, "interrupted"))
            raise
        if status in step.accepted:
            step.mark()
        reason = "" if step.finished else reason_of(status, read_end(log, record.offset))
        record = record.finished(status, reason)
        write_record(place.folder, record)
        return record


def lock_folder(folder: Path, step: Step) -> Path:
    """Where the lock of a step lies: of what several chains may fill, beside it (preprocessing empties the folder)."""
    if step.output is None:
        return folder / LOCKS / step.name
    return step.output.parent / f".{LOCKS}" / step.output.name


def working(folder: Path, steps: tuple[Step, ...]) -> list[Step]:
    """The steps that some process works on at this moment, as far as this machine sees."""
    folders = {step: lock_folder(folder, step) for step in steps}
    return [step for step, place in folders.items() if place.is_dir() and is_locked(place)]


def step_environment(processes: int = 1) -> dict[str, str]:
    """This process's, with our trainers in sight; in a job, as many worker processes as it has cores.

    Args:
        processes: That share the cores; each starts workers of its own.
    """
    environment = {**os.environ, VARIABLE: with_shim(os.environ.get(VARIABLE)), "PYTHONUNBUFFERED": "1"}
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if cores.isdecimal():
        each = max(1, int(cores) // processes)
        environment.setdefault("nnUNet_def_n_proc", str(each))
        environment.setdefault("nnUNet_n_proc_DA", str(each - 1))
    return environment
