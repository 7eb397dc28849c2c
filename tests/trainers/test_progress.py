"""The remaining time of a training whose epochs do not all take the same."""

from __future__ import annotations

import math
import time

import pytest

from ctnet_nnunet.trainers.progress import TrainingProgress


@pytest.mark.parametrize(
    ("costs", "done", "expected"),
    [
        (None, 10, 30.0),  # a quarter took 10 s
        ([1, 4, 4, 1], 10, 90.0),  # a tenth of all
        ([1, 4, 4, 1], 15, 10.0 * 7 / 3),
        ([1, 4, 4, 1], 40, 0.0),
    ],
)
def test_remaining_time(
    costs: list[float] | None, done: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    progress = TrainingProgress("x", 40, 0, False, costs)
    assert math.isnan(progress.remaining_seconds())
    progress.done = done
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    assert progress.remaining_seconds() == pytest.approx(expected)


def test_what_was_done_before_this_process_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    progress = TrainingProgress("x", 40, 10, False, [1, 4, 4, 1])
    progress.done = 20
    monkeypatch.setattr(time, "monotonic", lambda: 140.0)
    assert progress.remaining_seconds() == pytest.approx(50.0)
