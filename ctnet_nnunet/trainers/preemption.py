"""A training that is asked to stop, by SIGTERM or SIGUSR1, writes a checkpoint first and ends with a status of its own.

Clusters send such a signal before they take a machine away. The exit status 75 (EX_TEMPFAIL of sysexits.h) says: put
the job back into the queue, with ``--c``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

STOPPED_STATUS = 75
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignals:
    """Inside, the signals are remembered instead of ending the process; behind, they do again what they did before.

    Child processes that were forked inside (those that load data) are not meant: SIGTERM, with which they are ended,
    ends them, and SIGUSR1, which clusters send to every process of a job, leaves them alone.

    Args:
        at_once: Called with the signal's name when it comes, for work between whose parts nobody asks.
    """

    def __init__(self, at_once: Callable[[str], None] | None = None) -> None:
        self.received = 0
        self.at_once = at_once
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python lets the main thread alone decide about signals.
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.received = number
            if self.at_once is not None:
                self.at_once(signal.Signals(number).name)
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self, device: torch.device | None) -> str | None:
        """Name of the signal that this process or, with a device, any process of the group has received.

        Args:
            device: Where the processes' collectives work; None without a process group.
        """
        number = self.received
        if device is not None:
            flag = torch.tensor(number, device=device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            number = int(flag.item())
        return signal.Signals(number).name if number else None
