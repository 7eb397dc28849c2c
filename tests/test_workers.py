"""Worker processes: a death is named, costs one job, and never hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.workers import Death, run_jobs

pytestmark = pytest.mark.timeout(240)


def double(job: int) -> int:
    return 2 * job


def double_or_die(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 4:
        os._exit(7)
    return 2 * job


def die_once(marker: str) -> str:
    """Dies the first time that it sees a marker, as a case does that lacks memory only beside others."""
    if Path(marker).exists():
        return "survived"
    Path(marker).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


def threads(_: int) -> tuple[int, str]:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


class UnpicklableThere:
    """A work function that the child cannot load, as when a script lacks its main guard."""

    def __call__(self, job: int) -> int:
        return job

    def __reduce__(self) -> tuple:
        return (os._exit, (5,))


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_job_runs_once(processes: int) -> None:
    assert sorted(run_jobs(double, [1, 2, 3, 4, 5], processes)) == [(n, 2 * n) for n in range(1, 6)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_dead_worker_is_named_and_the_rest_goes_on(processes: int) -> None:
    results = dict(run_jobs(double_or_die, [1, 2, 3, 4, 5, 6], processes))
    assert {job: result for job, result in results.items() if job not in (3, 4)} == {1: 2, 2: 4, 5: 10, 6: 12}
    assert results[3] == Death(-9)
    assert "killed, most likely for lack of memory" in str(results[3])
    assert results[4] == Death(7)
    assert "exit code 7" in str(results[4])


def test_a_dead_job_runs_again_alone(tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    assert dict(run_jobs(die_once, [marker], 2)) == {marker: "survived"}


def test_a_worker_that_cannot_start() -> None:
    with pytest.raises(SetupError, match=r"could not start.*exit code 5.*__main__"):
        list(run_jobs(UnpicklableThere(), [1, 2], 2))


def test_threads_are_limited() -> None:
    assert dict(run_jobs(threads, [1], 1)) == {1: (1, "1")}


def test_stopping_early_leaves_no_process() -> None:
    import multiprocessing

    results = run_jobs(double, list(range(20)), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
