"""Progress of a training: a live bar with loss and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 60.0


class TrainingProgress:
    """Counts training iterations; ``update`` is called behind each.

    Args:
        label: What is trained, for the start of each line.
        total: Iterations in all.
        done: Iterations done before this process (a resumed training).
        enabled: False on all ranks but the first.
        costs: What an iteration of each epoch takes, relative to the others; equally much without.
    """

    def __init__(
        self, label: str, total: int, done: int, enabled: bool, costs: Sequence[float] | None = None
    ) -> None:
        self.label = label
        self.total = total
        self.start_at = self.done = done
        shares = costs or [1.0]
        self.ends = np.linspace(0, total, len(shares) + 1)  # of the epochs, in iterations
        self.cost_until = np.concatenate(([0.0], np.cumsum(shares))) * total / len(shares)
        self.started = self.last_line = time.monotonic()
        self.enabled = enabled
        self.bar: Progress | None = None
        if enabled and sys.stdout.isatty():
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self.bar = Progress(*columns, TextColumn("{task.fields[detail]}"), TimeElapsedColumn(), transient=True)
            self.task = self.bar.add_task(label, total=total, completed=done, detail="")

    def __enter__(self) -> TrainingProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, epoch: int, epochs: int, loss: float) -> None:
        """One iteration is done."""
        self.done += 1
        if not self.enabled:
            return
        detail = f"epoch {epoch + 1}/{epochs}, loss {loss:.4f}, {readable(self.remaining_seconds())} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, detail=detail)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            print(f"{self.label}: iteration {self.done}/{self.total}, {detail}", flush=True)

    def remaining_seconds(self) -> float:
        """At the pace of this process so far, validation and checkpoints included."""
        if self.done == self.start_at:
            return float("nan")
        ours, left = self._cost(self.start_at, self.done), self._cost(self.done, self.total)
        return (time.monotonic() - self.started) / ours * left

    def _cost(self, first: int, end: int) -> float:
        """Of the iterations from ``first`` to before ``end``."""
        before, behind = np.interp([first, end], self.ends, self.cost_until)
        return float(behind - before)


def readable(seconds: float) -> str:
    """``1 h 04 min``, ``12 min``, ``35 s`` or ``?``."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min" if minutes >= 2 else f"{minutes * 60 + rest} s"
