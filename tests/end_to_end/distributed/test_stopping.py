"""A signal that one of two processes gets stops both, behind one checkpoint."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from ctnet_nnunet.checkpoints import read_checkpoint
from ctnet_nnunet.cluster.progress import run_on
from ctnet_nnunet.trainers.preemption import STOPPED_STATUS
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.distributed.test_refusals import words
from tests.end_to_end.tiny import Tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")


def told_behind_the_first_step(rank: int) -> None:
    """Rank 1 alone gets SIGTERM, so that rank 0 can know of it by agreement only."""
    from ctnet_nnunet.trainers.resilient import ResilientTrainer

    behind_a_step = ResilientTrainer._save_by_the_clock

    def told(trainer: Any) -> None:
        behind_a_step(trainer)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    ResilientTrainer._save_by_the_clock = told  # type: ignore[method-assign]


def test_all_processes_stop_behind_one_checkpoint(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    ranks = run_ranks(tiny.env, *words(tiny), before=told_behind_the_first_step)
    assert [rank.status for rank in ranks] == [STOPPED_STATUS, STOPPED_STATUS], ranks[0].stderr + ranks[1].stderr
    line = "stopped by SIGTERM after iteration 1 of 2 of epoch 0; go on with --c"
    assert [rank.stdout.count(line) for rank in ranks] == [1, 0]
    assert [file.name for file in tiny.fold(0).rglob("*.pth")] == ["checkpoint_latest.pth"]
    left = read_checkpoint(tiny.fold(0) / "checkpoint_latest.pth")
    assert (left["current_epoch"], len(left["ctnet"]["epoch_outputs"])) == (0, 1)
    assert not (tiny.fold(0) / "validation").exists()
    assert run_on(tiny.fold(0)) == ("cpu", 2), "whose epochs say nothing of one process or of a GPU"
