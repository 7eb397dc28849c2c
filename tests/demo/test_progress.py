"""Remaining time and the reading of training logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.demo.progress import Estimator, training_fraction
from ctnet_nnunet.training_log import TrainingState, clock, read_training_state


def test_remaining_time_on_a_machine_as_fast_as_expected() -> None:
    estimator = Estimator([100.0, 200.0, 300.0])
    estimator.finish(0, 100.0)

    assert estimator.remaining(1, 0.5, 100.0) == pytest.approx(400.0)


def test_remaining_time_follows_a_slow_machine() -> None:
    estimator = Estimator([600.0, 600.0])
    estimator.finish(0, 1800.0)

    assert 1500.0 < estimator.remaining(1, 0.0, 0.0) < 1800.0


def test_steps_of_an_earlier_run_are_not_counted() -> None:
    estimator = Estimator([100.0, 200.0, 300.0])
    estimator.skip(0)

    assert estimator.remaining(1, 0.0, 0.0) == pytest.approx(500.0)
    assert estimator.done_share(1, 0.0) == pytest.approx(1 / 6)


def test_training_state_is_read_from_the_newest_attempt(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("x: Epoch 7\nx: train_loss -0.9\n")
    offset = log.stat().st_size

    assert read_training_state(log, offset) is None
    with log.open("a") as file:
        file.write("x: Epoch 3\nx: train_loss -0.25\nx: val_loss -0.1\nx: Epoch 4\n")
    assert read_training_state(log, offset) == TrainingState(4, "-0.25")
    assert read_training_state(tmp_path / "missing.txt", 0) is None


def test_fraction_grows_and_stays_below_one() -> None:
    states = [None, *(TrainingState(epoch, "0.1") for epoch in range(10))]

    fractions = [training_fraction(state, 10, 0.9) for state in states]

    assert fractions == sorted(fractions)
    assert fractions[0] > 0.0
    assert fractions[-1] < 1.0


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (725, "12:05"), (-3, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
