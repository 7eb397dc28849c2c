"""What became of a step's last start, kept beside its log, so that another process can say it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from ctnet_nnunet.cluster.reason import INTERRUPTED
from ctnet_nnunet.files import write_text

FOLDER = "records"
LOGS = "logs"


@dataclass(frozen=True)
class Record:
    """One start of a step.

    Attributes:
        name: The step's.
        job: Of SLURM, empty for a run here.
        node: Where.
        started, ended: ISO times; no end while it runs, or when it was killed.
        status: Exit status; negative: the signal.
        starts: How often it was started since its chain was, this time included.
        offset: Where this start's output begins in the log.
        reason: Why it did not succeed, empty otherwise.
        command: As it was run.
    """

    name: str
    node: str
    started: str
    command: str
    job: str = ""
    ended: str = ""
    status: int | None = None
    starts: int = 1
    offset: int = 0
    reason: str = ""

    def finished(self, status: int, reason: str) -> Record:
        """This, ended now."""
        return replace(self, ended=now(), status=status, reason=reason)

    def over(self, job: str) -> bool:
        """Whether this is of the given job, which has ended and does not come back."""
        return self.job == job and bool(self.ended) and self.status != INTERRUPTED


def now() -> str:
    """The time here, to the second, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def log_file(folder: Path, name: str) -> Path:
    """A step's log below its chain's folder."""
    return folder / LOGS / f"{name}.txt"


def write_record(folder: Path, record: Record) -> None:
    """Keep it below the chain's folder."""
    write_text(_file(folder, record.name), json.dumps(asdict(record), indent=1) + "\n")


def read_record(folder: Path, name: str) -> Record | None:
    """The newest start of a step; None when it was never started, or the file cannot be read."""
    try:
        return Record(**json.loads(_file(folder, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget(folder: Path, name: str) -> None:
    """A step that is about to be submitted anew has no record."""
    _file(folder, name).unlink(missing_ok=True)


def _file(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"
