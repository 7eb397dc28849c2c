"""Run steps in order: skip what is finished, go on with an interrupted training, stop at the first failure."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ctnet_nnunet.demo.display import Display
from ctnet_nnunet.demo.progress import Estimator, training_fraction
from ctnet_nnunet.demo.records import RecordBook, Run, key_of
from ctnet_nnunet.demo.steps import Step, command_line
from ctnet_nnunet.errors import CTNetError
from ctnet_nnunet.process import Workplace, last_lines, run_command
from ctnet_nnunet.training_log import read_training_state

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")


class StepFailedError(CTNetError):
    """A command of the demo ended with another status than 0; ``tail`` holds the last lines of its log."""

    exit_status = 1

    def __init__(self, message: str, tail: list[str]) -> None:
        super().__init__(message)
        self.tail = tail


@dataclass
class Pipeline:
    """Runs steps in a folder.

    Attributes:
        workplace: folder and environment of the commands.
        book: what was run before.
        display: told about progress.
        versions: of the software; results of another version are not taken over.
    """

    workplace: Workplace
    book: RecordBook
    display: Display
    versions: dict[str, str]

    def first_open(self, steps: Sequence[Step]) -> int:
        """Index of the first step that is not finished; ``len(steps)`` where all are."""
        return next((i for i, step in enumerate(steps) if not self._finished(step)), len(steps))

    def run(self, steps: Sequence[Step]) -> None:
        """Run all steps from the first open one on; what comes after it depends on it and is run anew.

        Raises:
            StepFailedError: when a command ends with a status other than 0.
            SetupError: when a command is not installed.
        """
        begin = self.first_open(steps)
        estimator = Estimator([step.expected_seconds for step in steps])
        for index, step in enumerate(steps):
            if index < begin:
                estimator.skip(index)
                self.display.skip(index + 1, len(steps), step.title)
                continue
            # Only the first open step can be half done on valid ground; the ones behind it start from nothing.
            resume = index == begin and self._resumable(step)
            self._run_one(steps, index, step, resume, estimator)

    def _run_one(self, steps: Sequence[Step], index: int, step: Step, resume: bool, estimator: Estimator) -> None:
        command = step.training.resume if resume and step.training else step.command
        if not resume:
            self._clear(step)
        # What came after this step in an earlier run was made from what this step is about to replace.
        self.book.forget(later.name for later in steps[index + 1 :])
        log = self.log_file(step)
        offset = _begin_log(log, command_line(command), anew=not resume)
        self.display.start(index + 1, len(steps), step.title, command_line(command))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.book.start(Run(step.name, self._key(step), command_line(command), now))
        started = time.monotonic()

        def tell() -> None:
            fraction, detail = self._progress(step, log, offset, time.monotonic() - started)
            left = estimator.remaining(index, fraction, time.monotonic() - started)
            self.display.update(estimator.done_share(index, fraction), detail, left)

        seconds, status = run_command(command, self.workplace, log, tell)
        self.book.end(seconds, status)
        self.display.end(seconds, status == 0)
        if status != 0:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise StepFailedError(f"'{command_line(command)}' {how}; its whole output is in {log}", last_lines(log))
        estimator.finish(index, seconds, fresh_share=0.5 if resume else 1.0)

    def log_file(self, step: Step) -> Path:
        """Where a step's output goes."""
        return self.workplace.folder / "logs" / f"{step.name}.txt"

    def _key(self, step: Step) -> str:
        return key_of(step.command, self.book.settings, self.versions)

    def _finished(self, step: Step) -> bool:
        run = self.book.last(step.name)
        written = all((self.workplace.folder / path).exists() for path in step.outputs)
        return run is not None and run.exit_status == 0 and run.key == self._key(step) and written

    def _resumable(self, step: Step) -> bool:
        run = self.book.last(step.name)
        if step.training is None or run is None or run.key != self._key(step):
            return False
        folder = self.workplace.folder / step.training.folder
        return run.exit_status != 0 and any((folder / name).is_file() for name in CHECKPOINTS)

    def _clear(self, step: Step) -> None:
        self.book.forget([step.name])
        for path in step.outputs:
            target = self.workplace.folder / path
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def _progress(self, step: Step, log: Path, offset: int, elapsed: float) -> tuple[float, str]:
        share = elapsed / step.expected_seconds
        if step.training is None:
            return min(0.95, share), ""
        state = read_training_state(log, offset)
        fraction = training_fraction(state, step.training.epochs, share)
        if state is None:
            return fraction, "starting"
        loss = f", loss {state.loss}" if state.loss else ""
        return fraction, f"epoch {state.epoch + 1}/{step.training.epochs}{loss}"


def _begin_log(log: Path, line: str, anew: bool) -> int:
    """Write the command as the log's (next) first line; returns the size of the log up to there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w" if anew else "a", encoding="utf-8") as file:
        file.write(f"$ {line}\n")
    return log.stat().st_size
