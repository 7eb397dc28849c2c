"""Run trainings, one or several at once: finished ones are left out, interrupted ones go on, failed ones are named."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.low_label.experiment import Experiment
from ctnet_nnunet.low_label.trainings import Training
from ctnet_nnunet.process import Workplace, last_lines, run_command
from ctnet_nnunet.training_log import clock, read_training_state

Tell = Callable[[str], None]
LINE_EVERY_SECONDS = 60.0


class _StoppedError(Exception):
    """The whole run was interrupted."""


@dataclass
class Runner:
    """Runs the trainings of an experiment.

    Attributes:
        experiment: Whose they are; the time each took is kept in it.
        workplace: Folder and environment of the commands.
        device: ``cpu`` or ``cuda``.
        workers: How many run at once.
        tell: Prints a line.
        failures: Title → what its log says, of trainings that ended with another status than 0.
    """

    experiment: Experiment
    workplace: Workplace
    device: str
    workers: int
    tell: Tell
    failures: dict[str, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _total: int = 0
    _left: int = 0

    def run(self, phases: Sequence[Sequence[Training]], then: Callable[[Training], None]) -> None:
        """Run what is not finished, phase by phase; ``then`` is called behind each training that has succeeded."""
        todo = [[training for training in phase if not training.finished] for phase in phases]
        self._total, self._left = sum(map(len, phases)), sum(map(len, todo))
        for phase in todo:
            self._run_phase(phase, then)

    def _run_phase(self, phase: Sequence[Training], then: Callable[[Training], None]) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(self._run_one, training, then) for training in phase]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop.set()
                for future in futures:
                    future.cancel()
                raise

    def _run_one(self, training: Training, then: Callable[[Training], None]) -> None:
        if self._stop.is_set():
            return
        command = training.command(self.experiment, self.device)
        with self._lock:
            number, about = self._total - self._left + 1, self._about()
            self._left -= 1
        self.tell(f"[{number}/{self._total}] {training.title}{about}\n    $ {shlex.join(command)}")
        if training.weights is not None and not training.weights.is_file():
            self._fail(training, f"{training.weights} is missing, because its pretraining failed")
            return
        log = self.workplace.folder / "logs" / f"{training.name}.txt"
        started = time.monotonic()
        try:
            _, status = self._command(training, command, log)
        except _StoppedError:
            return
        finally:
            seconds = time.monotonic() - started
            self._count(training, seconds, resumed="--c" in command)
        if status != 0 or not training.finished:
            reason = " / ".join(last_lines(log, 2))
            self._fail(training, f"ended with status {status}: {reason} (whole output: {log})")
            return
        self.tell(f"    {training.title}: done after {clock(seconds)} min")
        then(training)

    def _count(self, training: Training, seconds: float, resumed: bool) -> None:
        with self._lock:
            earlier = self.experiment.seconds.get(training.name, 0.0) if resumed else 0.0
            self.experiment.seconds[training.name] = round(earlier + seconds, 1)
            self.experiment.save()

    def _command(self, training: Training, command: tuple[str, ...], log: Path) -> tuple[float, int]:
        log.parent.mkdir(parents=True, exist_ok=True)
        offset = log.stat().st_size if log.is_file() else 0
        next_line = time.monotonic() + LINE_EVERY_SECONDS
        epochs = self.experiment.settings.epochs

        def while_running() -> None:
            nonlocal next_line
            if self._stop.is_set():
                raise _StoppedError
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_EVERY_SECONDS
                if (state := read_training_state(log, offset)) is not None:
                    self.tell(f"    {training.title}: epoch {state.epoch + 1}/{epochs}, loss {state.loss or '…'}")

        return run_command(command, self.workplace, log, while_running)

    def _fail(self, training: Training, reason: str) -> None:
        with self._lock:
            self.failures[training.title] = reason
        self.tell(f"    {training.title}: FAILED, {reason}")

    def _about(self) -> str:
        """How long all that is left will take, from the mean time of the trainings so far."""
        times = list(self.experiment.seconds.values())
        if not times:
            return ""
        left = sum(times) / len(times) * self._left / self.workers
        return f" (about {clock(left / 60)} h left)"
