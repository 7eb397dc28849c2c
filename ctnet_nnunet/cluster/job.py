"""What a SLURM job runs through submitit: one piece of work, stopped in time, queued again where that helps."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ctnet_nnunet.cluster.reason import INTERRUPTED, TERMINATED
from ctnet_nnunet.cluster.record import Record, read_record, write_record
from ctnet_nnunet.cluster.run_step import Place, StoppedError, run_step
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.errors import CTNetError


class Work(Protocol):
    """What a job does."""

    @property
    def name(self) -> str:
        """Of its record."""

    def progress(self) -> float:
        """Grows with what another start would not have to do again."""

    def run(self, place: Place, while_running: Callable[[], None]) -> Record:
        """Do it; ``while_running`` raises when it has to stop."""


@dataclass(frozen=True)
class StepWork:
    """A chain's step as a job's work."""

    step: Step

    @property
    def name(self) -> str:
        return self.step.name

    def progress(self) -> float:
        return self.step.progress()

    def run(self, place: Place, while_running: Callable[[], None]) -> Record:
        return run_step(self.step, place, while_running)


@dataclass
class Job:
    """A callable that submitit pickles; SLURM's signals reach it, and it passes them on.

    SIGUSR2 comes before the wall time ends: the command writes its checkpoint, and submitit asks SLURM to queue the job
    again. A start that came no further than the one before it does not: another one would not either. SIGTERM (scancel,
    preemption) lets the command write its checkpoint, too; whether the job comes back is SLURM's to decide.

    Attributes:
        work: What to do.
        folder: The chain's.
        patience: Seconds that the command gets to write its checkpoint.
    """

    work: Work
    folder: Path
    patience: float
    _received: int | None = field(default=None, init=False)

    def __call__(self) -> None:
        self._received = None
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._remember)
        job = _job_number()
        before, started = self.work.progress(), time.time()
        try:
            record = self.work.run(Place(self.folder, job, self.patience), self._stop_when_told)
        except StoppedError:
            self._stopped(requeue, before, started)
        except CTNetError as error:
            print(f"ctnet: error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_status) from error
        if record.reason:
            print(f"{self.work.name}: {record.reason}", file=sys.stderr, flush=True)
            raise SystemExit(record.status if record.status is not None and 0 < record.status < 128 else 1)

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number

    def _stop_when_told(self) -> None:
        if self._received is not None:
            raise StoppedError

    def _stopped(self, requeue: Any, before: float, started: float) -> None:
        if self._received == signal.SIGTERM:
            self._note(TERMINATED)
            raise SystemExit(INTERRUPTED)
        if self.work.progress() <= before:
            seconds = round(time.time() - started)
            self._note(
                f"its wall time ended after {seconds} s with nothing to go on from; another start would come no "
                "further: give it more with --time"
            )
            raise SystemExit(INTERRUPTED)
        self._note("its wall time ended; back in the queue")
        self._received = None
        requeue(signal.SIGUSR2, None)  # submitit's: writes this job anew, asks SLURM, ends the process
        raise SystemExit(INTERRUPTED)

    def _note(self, reason: str) -> None:
        record = read_record(self.folder, self.work.name)
        if record is not None:
            write_record(self.folder, record.finished(INTERRUPTED, reason))
        print(f"{self.work.name}: {reason}", file=sys.stderr, flush=True)


def _job_number() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")
