"""Progress of a conversion: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ctnet_nnunet.conversion.case import Outcome
from ctnet_nnunet.progress_bar import case_bar

_SECONDS_BETWEEN_LINES = 10.0


class Display:
    """How far the conversion is and how long it will take; what was refused is printed when it ends."""

    def __init__(self) -> None:
        self._bar = case_bar() if sys.stdout.isatty() else None
        self._context: AbstractContextManager[Any] = self._bar or nullcontext()
        self._task = self._bar.add_task("converting", total=None) if self._bar else None
        self._start = self._last = time.monotonic()

    def __enter__(self) -> Display:
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def show(self, outcome: Outcome, through: int, total: int) -> None:
        """Report one case; ``through`` of ``total`` are through with it."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=through, total=total)
            return
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and through < total:
            return
        self._last = now
        left = (now - self._start) / through * (total - through)
        remaining = f", about {left:.0f} s left" if through < total else ""
        print(f"[{through}/{total}] {outcome.case}{remaining}", flush=True)
