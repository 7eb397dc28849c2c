"""A job whose wall time ends: when it goes back into the queue, and when another start would come no further."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctnet_nnunet.cluster.job import Job
from ctnet_nnunet.cluster.record import Record, read_record, write_record
from ctnet_nnunet.cluster.run_step import Place
from ctnet_nnunet.cluster.step import Step

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="signals of Unix")


class Cut:
    """A step's start that leaves a checkpoint and is then told that its time ends."""

    name = "fold_0"

    def __init__(self, step: Step, leaves: str) -> None:
        self.step, self.leaves = step, leaves

    def progress(self) -> float:
        return self.step.progress()

    def run(self, place: Place, while_running: Callable[[], None]) -> Record:
        write_record(place.folder, Record(self.name, "node", "now", "train", place.job))
        if self.leaves:
            assert self.step.folder is not None
            file = self.step.folder / self.leaves
            file.touch()
            os.utime(file, (time.time() + 60,) * 2)
        os.kill(os.getpid(), signal.SIGUSR2)
        while_running()
        raise AssertionError("it was not told")


@pytest.fixture
def requeued() -> Iterator[list[int]]:
    """How often submitit was asked to put the job back, whose handler of SIGUSR2 this stands for."""
    numbers: list[int] = []
    earlier = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("there", "leaves", "back"),
    [
        ("", "", False),
        ("", "checkpoint_latest.pth", True),
        ("checkpoint_latest.pth", "", False),
        ("checkpoint_latest.pth", "checkpoint_latest.pth", True),
        ("checkpoint_latest.pth", "checkpoint_final.pth", True),
        # nnU-Net writes it anew at each start of a final validation that is longer than the wall time.
        ("checkpoint_final.pth", "checkpoint_final.pth", False),
    ],
)
def test_back_into_the_queue_only_with_progress(
    tmp_path: Path, requeued: list[int], there: str, leaves: str, back: bool
) -> None:
    if there:
        (tmp_path / there).touch()
    step = Step("fold_0", "fold 0", "training", ("train",), (tmp_path / "summary.json",), folder=tmp_path)
    with pytest.raises(SystemExit) as ended:
        Job(Cut(step, leaves), tmp_path / "chain", 1.0)()
    assert ended.value.code == 75 and bool(requeued) is back
    record = read_record(tmp_path / "chain", "fold_0")
    assert record is not None and ("back in the queue" in record.reason) is back
    assert ("another start would come no further" in record.reason) is not back
