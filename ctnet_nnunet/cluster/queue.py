"""What SLURM says about jobs: their states, from squeue and, where accounting is kept, sacct."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ALIVE = frozenset(
    ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "STOPPED")
)
SECONDS = 60


@dataclass(frozen=True)
class JobState:
    """Attributes:
    state: SLURM's word, for example RUNNING.
    reason: Why it waits, SLURM's word, or empty.
    """

    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in ALIVE


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Job (``12`` or ``12_3``) → its state; jobs that SLURM no longer knows, or all without SLURM, are left out."""
    wanted = {job for job in jobs if job}
    if not wanted:
        return {}
    found = _squeue(wanted)
    return _sacct(wanted - set(found)) | found


def _squeue(wanted: set[str]) -> dict[str, JobState]:
    ids = ",".join(sorted({job.split("_")[0] for job in wanted}))
    words = ("squeue", "--noheader", "--array", "--states=all", f"--jobs={ids}", "--format=%i|%T|%r")
    rows = [line.split("|") for line in _output(words).splitlines() if line.count("|") == 2]
    return {row[0]: JobState(row[1], "" if row[2] == "None" else row[2]) for row in rows if row[0] in wanted}


def _sacct(wanted: set[str]) -> dict[str, JobState]:
    if not wanted:
        return {}
    ids = ",".join(sorted({job.split("_")[0] for job in wanted}))
    words = ("sacct", "--noheader", "--parsable2", "--array", f"--jobs={ids}", "--format=JobID,State")
    rows = [line.split("|") for line in _output(words).splitlines() if line.count("|") == 1]
    return {row[0]: JobState(row[1].split(" ")[0]) for row in rows if row[0] in wanted}


def _output(words: tuple[str, ...]) -> str:
    """What a command prints; empty where it does not exist or fails, as squeue does for jobs it has forgotten."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
