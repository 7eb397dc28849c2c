"""A shard: an ordinary ``ctnet predict`` over some of the scans; each start writes into a folder of its own."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctnet_nnunet.cluster.reason import read_end, reason_of
from ctnet_nnunet.cluster.record import Record, log_file, now, read_record, write_record
from ctnet_nnunet.cluster.run_step import Place, step_environment
from ctnet_nnunet.inference.merge import Part, read_part
from ctnet_nnunet.process import Workplace, run_command

FOLDER = ".shards"
"""Below the output folder, until everything is merged."""
PARTS = "parts"


@dataclass(frozen=True)
class Shard:
    """Attributes:
    name: Of its record and its log.
    words: The command without ``-o`` and ``--only``.
    folder: ``OUT/.shards``.
    cases: Which it is to predict.
    report: Whether a case needs a page to be whole.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    cases: tuple[str, ...]
    report: bool

    def left(self) -> list[str]:
        """The cases that no start has finished."""
        done = {case for part in parts_of(self.folder) for case in part.cases(self.report)}
        return [case for case in self.cases if case not in done]

    def progress(self) -> float:
        return len(self.cases) - len(self.left())

    def run(self, place: Place, while_running: Callable[[], None]) -> Record:
        """Predict what is left; a scan that fails is named in that start's record, and the job has succeeded."""
        before = read_record(self.folder, self.name)
        cases, log = self.left(), log_file(self.folder, self.name)
        starts = 1 + (before.starts if before is not None and before.job == place.job else 0)
        out = self.folder / PARTS / f"{self.name}_{place.job or 'here'}_{starts}"
        words = (*self.words, "-o", str(out), "--only", *cases)
        record = Record(self.name, socket.gethostname(), now(), shlex.join(words), place.job, starts=starts,
                        offset=log.stat().st_size if log.is_file() else 0)  # fmt: skip
        if not cases:
            return record.finished(0, "")
        write_record(self.folder, record)
        workplace = Workplace(self.folder, step_environment())
        _, status = run_command(words, workplace, log, while_running, place.patience)
        reason = "" if status in (0, 1) else reason_of(status, read_end(log, record.offset))
        record = record.finished(status, reason)
        write_record(self.folder, record)
        return record

    def failures(self, why: str) -> dict[str, str]:
        """Reasons for the cases that are left: the scan's own where its command said one, else ``why``."""
        said = {case: reason for part in parts_of(self.folder) for case, reason in part.record["failures"].items()}
        record = read_record(self.folder, self.name)
        text = read_end(log_file(self.folder, self.name), record.offset if record else 0)
        for case in self.left():
            # A start that failed with all its scans leaves no record, only its lines.
            if lines := re.findall(rf"^{re.escape(case)}: FAILED: (.+)$", text, re.MULTILINE):
                said.setdefault(case, lines[-1])
        return {case: said.get(case, why) for case in self.left()}


def parts_of(folder: Path) -> list[Part]:
    """What all starts of all shards left below ``OUT/.shards``, the oldest first."""
    folders = [path for path in (folder / PARTS).iterdir() if path.is_dir()] if (folder / PARTS).is_dir() else []
    found = [read_part(path) for path in sorted(folders, key=lambda path: path.stat().st_mtime)]
    return [part for part in found if part is not None]


def cut(cases: Sequence[str], words: tuple[str, ...], folder: Path, jobs: int, report: bool) -> list[Shard]:
    """Deal the cases out in turn, so that long scans that lie together do not fall to one job."""
    count = min(jobs, len(cases))
    return [Shard(f"shard_{number + 1}", words, folder, tuple(cases[number::count]), report) for number in range(count)]
