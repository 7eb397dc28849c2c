"""What SLURM says about jobs: their states, from squeue and, where accounting is kept, sacct."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ALIVE = frozenset(
    ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "STOPPED")
)
UNKNOWN = "UNKNOWN"
"""Not SLURM's: it could not be asked."""
SECONDS = 60
_FORGOTTEN = "Invalid job id"


@dataclass(frozen=True)
class JobState:
    """Attributes:
    state: SLURM's word, for example RUNNING, or :data:`UNKNOWN`.
    reason: Why it waits, SLURM's word, or empty; why SLURM could not be asked.
    """

    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it still waits or runs, or may do so because SLURM could not be asked."""
        return self.state in ALIVE or self.state == UNKNOWN


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Job (``12`` or ``12_3``) → its state; those that SLURM no longer knows are left out."""
    wanted = {job for job in jobs if job}
    if not wanted:
        return {}
    found, trouble = _squeue(wanted)
    found = _sacct(wanted - set(found)) | found
    return found | {job: JobState(UNKNOWN, trouble) for job in wanted - set(found) if trouble}


def _squeue(wanted: set[str]) -> tuple[dict[str, JobState], str]:
    """What squeue says, and why it could not say more; that it has forgotten a job is an answer, too."""
    ids = ",".join(sorted({job.split("_")[0] for job in wanted}))
    words = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", "--format=%i|%T|%r")
    printed, trouble = _output(words)
    rows = [line.split("|") for line in printed.splitlines() if line.count("|") == 2]
    states = {row[0]: JobState(row[1], "" if row[2] == "None" else row[2]) for row in rows if row[0] in wanted}
    return states, "" if _FORGOTTEN in trouble else trouble


def _sacct(wanted: set[str]) -> dict[str, JobState]:
    """Nothing where no accounting is kept, which is no trouble."""
    if not wanted:
        return {}
    ids = ",".join(sorted({job.split("_")[0] for job in wanted}))
    words = ("sacct", "--noheader", "--parsable2", "--array", f"--jobs={ids}", "--format=JobID,State")
    rows = [line.split("|") for line in _output(words)[0].splitlines() if line.count("|") == 1]
    return {row[0]: JobState(row[1].split(" ")[0]) for row in rows if row[0] in wanted}


def _output(words: tuple[str, ...]) -> tuple[str, str]:
    """What a command prints, and the last line of its trouble where it does not exist, fails or hangs."""
    if shutil.which(words[0]) is None:
        return "", f"no {words[0]} on PATH"
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return "", f"{words[0]} did not answer within {SECONDS} s"
    except OSError as error:
        return "", f"{words[0]}: {error.strerror}"
    if asked.returncode == 0:
        return asked.stdout, ""
    said = [line.strip() for line in asked.stderr.splitlines() if line.strip()]
    forgotten = next((line for line in said if _FORGOTTEN in line), "")
    return asked.stdout, forgotten or (said or [f"{words[0]} ended with status {asked.returncode}"])[-1]
