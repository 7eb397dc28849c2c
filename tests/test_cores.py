"""Threads follow what a process may use and what its user said, not what the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ctnet_nnunet.cores import compute_threads, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_a_pinned_process_counts_its_own_cores() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{one}]); from ctnet_nnunet.cores import *; print(usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)])
def test_omp_num_threads_speaks_where_it_is_a_number(
    monkeypatch: pytest.MonkeyPatch, said: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert compute_threads() == (usable_cores() if threads is None else threads)
