"""One command of a chain, and the files that show that it need not run again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["preprocess", "unlabeled", "pretraining", "training", "ensemble", "report"]
TRAININGS: tuple[Kind, ...] = ("pretraining", "training")
DERIVED: tuple[Kind, ...] = ("ensemble", "report")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Step:
    """A command of nnU-Net's or ours.

    Attributes:
        name: Of its log, its record and its lock.
        title: For people.
        kind: What it does.
        words: The command, from its start.
        proofs: Files that are there when it is finished; those that end in .json must be whole JSON.
        after: Names of the steps whose results it reads.
        made_from: Files; when one is newer than the first proof, the step is due again.
        folder: Of a training: where its checkpoints lie.
        weights: Of a training: what it starts from.
        accepted: Exit statuses that count as success: 1 where a refused case is named and the others are done.
        marked: The first proof is written by who runs the step, because the command itself leaves no sign.
        output: Of a step that other chains have, too (preprocessing, pretraining): the folder that one alone may fill.
        processes: That its command starts and that share its cores.
    """

    name: str
    title: str
    kind: Kind
    words: tuple[str, ...]
    proofs: tuple[Path, ...]
    after: tuple[str, ...] = ()
    made_from: tuple[Path, ...] = ()
    folder: Path | None = None
    weights: Path | None = None
    accepted: tuple[int, ...] = (0,)
    marked: bool = False
    output: Path | None = None
    processes: int = 1

    @property
    def finished(self) -> bool:
        """Whether all proofs are there and no source is newer."""
        if not all(_is_whole(file) for file in self.proofs):
            return False
        written = self.proofs[0].stat().st_mtime
        return all(file.stat().st_mtime <= written for file in self.made_from if file.exists())

    @property
    def checkpoint(self) -> Path | None:
        """Of a training: the checkpoint that it would go on from."""
        found = [self.folder / name for name in CHECKPOINTS if (self.folder / name).is_file()] if self.folder else []
        return found[0] if found else None

    def command(self) -> tuple[str, ...]:
        """The command as it has to be typed now: a training goes on from its checkpoint where there is one."""
        if self.checkpoint is not None:
            return (*self.words, "--c")
        return self.words if self.weights is None else (*self.words, "-pretrained_weights", str(self.weights))

    def progress(self) -> float:
        """Grows whenever work was done that another start would not have to do again: a newer checkpoint.

        Nothing is beyond the final one. nnU-Net writes it anew at each start of a final validation, which begins anew.
        """
        file = self.checkpoint
        if file is None:
            return 0.0
        return math.inf if file.name == CHECKPOINTS[0] else max(self._checkpoint_times())

    def _checkpoint_times(self) -> list[float]:
        files = [self.folder / name for name in CHECKPOINTS] if self.folder else []
        return [file.stat().st_mtime for file in files if file.is_file()]

    def mark(self) -> None:
        """Leave the sign that the command itself does not leave."""
        if self.marked:
            self.proofs[0].parent.mkdir(parents=True, exist_ok=True)
            self.proofs[0].touch()


def needed(steps: Sequence[Step]) -> list[Step]:
    """What has to run, in order: trainings that are not finished, what is made of them, and what they read.

    A pretraining whose fold is trained is not needed, nor are scans that only such pretrainings read.
    """
    wanted: set[str] = set()
    for step in steps:
        renewed = step.kind in DERIVED and not wanted.isdisjoint(step.after)
        if step.kind in (*DERIVED, "training") and (renewed or not step.finished):
            wanted.add(step.name)
    for step in reversed(steps):
        readers = {later.name for later in steps if step.name in later.after}
        if not wanted.isdisjoint(readers) and not step.finished:
            wanted.add(step.name)
    return [step for step in steps if step.name in wanted]


def _is_whole(file: Path) -> bool:
    if file.suffix != ".json":
        return file.is_file()
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
