"""What a comparison's trainings are given: its own folders, and no more cores than there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.low_label import run
from ctnet_nnunet.low_label.run import Request, training_environment


def request(workers: int, device: str) -> Request:
    return Request("511", (1,), 3, ("ctnet",), 10, 10, Path("out"), workers=workers, device=device)


@pytest.mark.parametrize(
    ("workers", "device", "threads"), [(1, "cpu", None), (2, "cpu", "4"), (16, "cpu", "1"), (2, "cuda", None)]
)
def test_trainings_at_once_share_the_cores(
    workers: int, device: str, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run, "usable_cores", lambda: 8)
    assert training_environment(request(workers, device)).get("OMP_NUM_THREADS") == threads


def test_a_users_own_number_of_threads_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert training_environment(request(2, "cpu"))["OMP_NUM_THREADS"] == "3"
