"""How far each rank is, in a file of its own in a folder that all of them see.

A file says more than a collective: it can be waited for as long as its rank gives signs of life, and a rank that has
died is known by its name, machine and process.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import TrainingError

BEAT_SECONDS = 5.0
SILENT_SECONDS = 600.0
POLL_SECONDS = 0.2
STATES = ("running", "predicted", "ended")
"""In this order."""


class RankFiles:
    """A context in which this rank's file is written anew every few seconds.

    Args:
        folder: Of all ranks' files; rank 0 removes it at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.rank = folder, ranks.rank()
        self.state, self.problem, self.beats = "running", "", 0
        self._seen: dict[int, tuple[dict[str, Any] | None, float]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> RankFiles:
        # Files of an earlier attempt carry another name.
        self.attempt = ranks.from_first(uuid.uuid4().hex)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: could not be made ({error.strerror}); free disk space or fix the rights, then "
                f"{REMEDY}"
            ) from error
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_beating()
        if error is not None:
            stopped = isinstance(error, SystemExit)
            self.problem = "it was stopped" if stopped else (str(error).splitlines() or [type(error).__name__])[0]
            self._write()
        elif self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tell(self, state: str) -> None:
        """Let the others know that this rank has come to ``state``.

        Behind "predicted" nobody waits for signs of life but rank 0's: the other ranks stop giving them, since one that
        came while rank 0 removes the folder would leave it there, without rank 0's file.
        """
        self.state = state
        if self.rank and state != STATES[0]:
            self._stop_beating()
        self._write()

    def wait_for(self, others: Iterable[int], state: str) -> None:
        """Wait until all of ``others`` have come to ``state``, as long as they give signs of life.

        Raises:
            TrainingError: One of them has failed, ended or fallen silent.
        """
        missing = list(others)
        while missing:
            missing = [other for other in missing if not self._has_come(other, state)]
            if missing:
                time.sleep(POLL_SECONDS)

    def unfinished(self) -> list[str]:
        """Names of the other ranks that have not predicted all of their cases."""
        told = {other: self._look(other)[0] for other in range(ranks.world_size()) if other != self.rank}
        return [_name(other, last) for other, last in told.items() if last is None or last["state"] == STATES[0]]

    def _has_come(self, other: int, state: str) -> bool:
        told, since = self._look(other)
        if told is None:
            # Rank 0 removes the folder when all is over.
            if other == 0 and not self.folder.exists():
                return True
        elif told["problem"]:
            raise TrainingError(f"final validation: {_name(other, told)} has failed: {told['problem']}; {REMEDY}")
        elif STATES.index(told["state"]) >= STATES.index(state):
            return True
        elif told["host"] == socket.gethostname() and not _is_alive(told["process"]):
            raise TrainingError(f"final validation: {_name(other, told)} has ended before it was done; {REMEDY}")
        if time.monotonic() - since > SILENT_SECONDS:
            raise TrainingError(
                f"final validation: {_name(other, told)} has given no sign of life for {SILENT_SECONDS / 60:.0f} "
                f"minutes; {REMEDY}"
            )
        return False

    def _look(self, other: int) -> tuple[dict[str, Any] | None, float]:
        """What a rank last told, and since when that has not changed, by this machine's clock."""
        try:
            told = json.loads((self.folder / f"{self.attempt}_{other}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = None
        before = self._seen.get(other)
        if before is None or before[0] != told:
            self._seen[other] = (told, time.monotonic())
        return self._seen[other]

    def _stop_beating(self) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._write()

    def _write(self) -> None:
        file = self.folder / f"{self.attempt}_{self.rank}.json"
        with self._lock:
            self.beats += 1
            told = {
                "state": self.state, "problem": self.problem, "beats": self.beats,
                "host": socket.gethostname(), "process": os.getpid(),
            }  # fmt: skip
            temporary = file.with_suffix(".partial")
            try:
                temporary.write_text(json.dumps(told), encoding="utf-8")
                temporary.replace(file)
            except OSError:  # a full disk, which what is validated will meet, too, or a folder that is removed
                return


REMEDY = "repeat it with --val"


def _name(rank: int, told: dict[str, Any] | None) -> str:
    return f"rank {rank}" if told is None else f"rank {rank} on {told['host']} (process {told['process']})"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
