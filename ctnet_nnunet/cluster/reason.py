"""Why a command ended, in words: from its exit status, its scheduler's state and the end of its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

INTERRUPTED = 75
"""Exit status of a training that was told to stop and wrote its checkpoint (EX_TEMPFAIL)."""
TERMINATED = "ended by SIGTERM (cancelled or preempted)"
"""What a job can say itself; SLURM knows which of the two it was."""
FORGOTTEN = "never started: cancelled, or no longer known to SLURM"
"""SLURM forgets a cancelled task of an array that never ran at once, unless accounting is kept."""
TAIL_BYTES = 60_000
STATES: Mapping[str, str] = {
    "OUT_OF_MEMORY": "killed for its memory; ask for more with --slurm mem=…",
    "TIMEOUT": "the wall time ended",
    "PREEMPTED": "preempted by another job",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
}
"""SLURM's own words for how a job ended, where they say more than its exit status."""
_SLURM_LINES = (
    (re.compile(r"oom[-_ ]kill", re.IGNORECASE), "OUT_OF_MEMORY"),
    (re.compile(r"(JOB|STEP) \S+ ON .* CANCELLED AT .* DUE TO TIME LIMIT"), "TIMEOUT"),
    (re.compile(r"(JOB|STEP) \S+ ON .* CANCELLED AT .* DUE TO PREEMPTION"), "PREEMPTED"),
    (re.compile(r"(JOB|STEP) \S+ ON .* CANCELLED AT .* DUE TO NODE FAILURE"), "NODE_FAIL"),
    (re.compile(r"(JOB|STEP) \S+ ON .* CANCELLED AT "), "CANCELLED"),
)
_GPU_MEMORY = re.compile(r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA error: out of memory")
_NO_SPACE = re.compile(r"No space left on device|Errno 28\b")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)|AssertionError)\b(: .*)?$")
_RANK = re.compile(r"^\[rank\d+\]: ", re.MULTILINE)
"""torch writes it before each line of a traceback in a process group."""
_LAUNCHER_LINE = re.compile(r"^[IWE]\d{4} [\d:.]+ \d+ \S*torch/distributed/.*$\n?", re.MULTILINE)
_LAUNCHER_ERROR = re.compile(r"^torch\.distributed\.elastic\.\S+\.(ChildFailedError|SignalException)\b", re.MULTILINE)
_FIRST_FAILURE = re.compile(r"^Root Cause .*?^\s*exitcode\s*: (-?\d+)", re.MULTILINE | re.DOTALL)
_TRACEBACK = "Traceback (most recent call last):"
_OUR_LINE = "ctnet: error: "


def reason_of(status: int | None, log_end: str, state: str = "") -> str:
    """One line.

    Args:
        status: Exit status; negative or above 128: a signal; None where it is not known.
        log_end: The last output of this start.
        state: SLURM's, empty where there is none.
    """
    words = STATES.get(state.split(" ")[0].rstrip("+"))
    if words is not None:
        return words
    log_end, status = _without_launcher(log_end, status)
    lines = [line.strip() for line in log_end.splitlines() if line.strip()]
    said = _said(lines)
    if _GPU_MEMORY.search(log_end):
        return f"out of GPU memory: {said}; smaller batch_size or patch_size (ctnet plan), or a larger GPU"
    if status is not None and (status in (-9, 137)):
        return "killed by SIGKILL, most likely for lack of memory"
    if status == INTERRUPTED:
        return "interrupted; its checkpoint is written"
    if _NO_SPACE.search(said):
        return f"the disk is full: {said}"
    signalled = _signal_number(status)
    if signalled is not None:
        return f"ended by signal {signalled}"
    return said or f"ended with status {status}"


def slurm_state_in(text: str) -> str:
    """The state that SLURM's own lines in a job's output tell of; empty where there are none."""
    return next((state for pattern, state in _SLURM_LINES if pattern.search(text)), "")


def our_line(text: str) -> str:
    """The last error that this package named, empty where there is none."""
    ours = [line for line in map(str.strip, text.splitlines()) if line.startswith(_OUR_LINE)]
    return ours[-1].removeprefix(_OUR_LINE) if ours else ""


def read_end(file: Path, offset: int = 0) -> str:
    """A file's last part, from ``offset`` on; empty where there is no file."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(min(offset, size), size - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _without_launcher(text: str, status: int | None) -> tuple[str, int | None]:
    """What the processes that torchrun has started said, and the exit status of the first of them that failed."""
    text = _LAUNCHER_LINE.sub("", _RANK.sub("", text))
    if (error := _LAUNCHER_ERROR.search(text)) is None:
        return text, status
    failure = _FIRST_FAILURE.search(text, error.start())
    before = text.rfind(_TRACEBACK, 0, error.start())
    return text[:before] if before >= 0 else text[: error.start()], int(failure[1]) if failure else status


def _said(lines: list[str]) -> str:
    """The line that says what went wrong: ours, else the last exception's, else the last one."""
    if ours := our_line("\n".join(lines)):
        return ours
    for line in reversed(lines):
        if _EXCEPTION.match(line):
            return line
    return lines[-1] if lines else ""


def _signal_number(status: int | None) -> int | None:
    if status is None or 0 <= status <= 128:
        return None
    return -status if status < 0 else status - 128
