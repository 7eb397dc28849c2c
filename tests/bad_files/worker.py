"""Runs commands one after the other in one process and measures each: ``python -m tests.bad_files.worker IN OUT``."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

from ctnet_nnunet.cli import main as ctnet
from tests.bad_files.generate import shortened

EXTRA_ADDRESS_SPACE = 6 * 2**30
"""Above what the imports take; a file that asks for more fails here instead of taking the machine down."""


def run(words: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one ``ctnet`` command."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["ctnet", *words]),
    ):
        try:
            ctnet.main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            status = -1
            traceback.print_exc()
    return status, out.getvalue(), err.getvalue()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its length and time of change."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return found


def reset_peak() -> bool:
    """Let the kernel count this process' peak memory anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` at its peak, ``VmSize`` of addresses."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + EXTRA_ADDRESS_SPACE, resource.RLIM_INFINITY))


def measured(job: dict[str, Any], root: str) -> dict[str, Any]:
    folder = Path(job["folder"])
    before = snapshot(folder)
    reset_peak()
    held = memory("VmRSS")
    started = time.monotonic()
    status, out, err = run(job["words"])
    return {
        "status": status,
        "out": out,
        "err": err,
        "said": shortened(err, job["folder"], root),
        "seconds": time.monotonic() - started,
        "grown": memory("VmHWM") - held,
        "changed": sorted(set(before.items()) ^ set(snapshot(folder).items())),
    }


def main(jobs_file: str, results_file: str) -> None:
    jobs = json.loads(Path(jobs_file).read_text())
    root = str(Path(jobs_file).parent)
    results = {}
    for number, job in enumerate(jobs):
        results[job["name"]] = measured(job, root)
        if number == 0:  # the good one comes first and imports everything
            limit_memory()
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:3])
