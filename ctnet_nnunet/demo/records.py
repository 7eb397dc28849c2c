"""What was run in a demo folder, with which command and how it ended; written before and after each command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import write_text

FILE_NAME = "demo.json"


@dataclass(frozen=True)
class Run:
    """One command that was started. ``exit_status`` is None while it runs, and stays so if the machine went down.

    Attributes:
        step: name of its step.
        key: hash of all that the step depends on.
        line: the command as typed.
        started: local time, ISO 8601.
        seconds: how long it ran.
    """

    step: str
    key: str
    line: str
    started: str
    seconds: float = 0.0
    exit_status: int | None = None


@dataclass
class RecordBook:
    """The runs of one demo folder, kept in its ``demo.json``."""

    path: Path
    settings: str
    runs: list[Run]

    def last(self, step: str) -> Run | None:
        """The newest run of a step."""
        return next((run for run in reversed(self.runs) if run.step == step), None)

    def start(self, run: Run) -> None:
        """Add a run that is about to start."""
        self.runs.append(run)
        self.save()

    def end(self, seconds: float, exit_status: int) -> None:
        """Complete the newest run."""
        self.runs[-1] = replace(self.runs[-1], seconds=round(seconds, 1), exit_status=exit_status)
        self.save()

    def forget(self, steps: Iterable[str]) -> None:
        """Drop the runs of steps that are about to be run anew."""
        names = set(steps)
        self.runs = [run for run in self.runs if run.step not in names]
        self.save()

    def save(self) -> None:
        """Write the file; a reader sees the old one or the whole new one."""
        content = {"settings": self.settings, "runs": [asdict(run) for run in self.runs]}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def open_book(folder: Path, settings: str) -> RecordBook:
    """The record book of ``folder``, a new one where there is none.

    Raises:
        SetupError: if the folder holds a demo of other settings, a broken record, or files that are no demo.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        if folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
            raise SetupError(f"{folder} holds other files and no {FILE_NAME}; give an empty folder with --out")
        return RecordBook(path, settings, [])
    try:
        content = json.loads(path.read_text())
        book = RecordBook(path, content["settings"], [Run(**run) for run in content["runs"]])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SetupError(f"{path} cannot be read ({error!r}); start over with --restart") from error
    if book.settings != settings:
        raise SetupError(
            f"{folder} holds a {book.settings} demo and this is a {settings} one; give another --out, or --restart"
        )
    return book


def key_of(*parts: Any) -> str:
    """Hash of JSON-serialisable parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
