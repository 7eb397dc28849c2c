"""Real torchrun on two processes: one is killed, the group starts anew and goes on; each validates its share."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ctnet_nnunet.checkpoints import read_checkpoint
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import BIN, environment
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.distributed.test_refusals import line_of, words
from tests.end_to_end.tiny import TRAINER, Tiny, prepare

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's /proc")
EPOCHS, SECONDS = 5, 420


@pytest.fixture(scope="module")
def trained(nnunet_env: NnunetEnv, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, str]:
    """Fold 0, of which rank 1 was killed in its third epoch, and what was printed."""
    tiny = prepare(nnunet_env, 656, "Torchrun", unlabelled=0, more=(f"epochs={EPOCHS}", "save_minutes=0.000001"))
    cases = [f"tr_{number:03d}" for number in range(5)]
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[:2], "val": cases[2:]}]))
    log = tmp_path_factory.mktemp("torchrun") / "log"
    leave_an_old_training(tiny.fold(0))
    launcher = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    with log.open("w") as output:
        agent = subprocess.Popen(
            [*launcher, "-m", "ctnet_nnunet.train", *words(tiny)],
            env=environment(tiny.env), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for_epoch(tiny, agent, 2)
            os.kill(process_of_rank(agent.pid, 1), signal.SIGKILL)
            status = agent.wait(SECONDS)
        finally:
            agent.kill()
    assert status == 0, log.read_text()[-5000:]
    return tiny, log.read_text()


def leave_an_old_training(fold: Path) -> None:
    """A finished one, of an hour ago: it must be set aside once, and never be gone on from."""
    fold.mkdir(parents=True)
    file = fold / "checkpoint_final.pth"
    file.write_text("old")
    os.utime(file, (time.time() - 3600,) * 2)


def wait_for_epoch(tiny: Tiny, agent: subprocess.Popen[bytes], epoch: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and agent.poll() is None:
        latest = tiny.fold(0) / "checkpoint_latest.pth"
        if latest.is_file() and read_checkpoint(latest)["current_epoch"] >= epoch:
            return
        time.sleep(0.05)
    raise AssertionError("the training did not come so far")


def process_of_rank(agent: int, rank: int) -> int:
    """The child of torchrun's agent that has this rank."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_the_group_goes_on_from_the_last_checkpoint(trained: tuple[Tiny, str]) -> None:
    tiny, printed = trained
    assert printed.count("restart 1 by torchrun: going on from") >= 1
    assert "checkpoint_latest.pth" in printed.partition("going on from ")[2].splitlines()[0]
    checkpoint = read_checkpoint(tiny.fold(0) / "checkpoint_final.pth")
    assert checkpoint["current_epoch"] == EPOCHS
    assert {len(values) for values in checkpoint["logging"].values()} == {EPOCHS}
    assert {state["step"].item() for state in checkpoint["optimizer_state"]["state"].values()} == {2 * EPOCHS}
    (aside,) = tiny.fold(0).glob("previous_*")
    assert [file.read_text() for file in aside.iterdir()] == ["old"]


def test_every_rank_has_validated_its_share(trained: tuple[Tiny, str]) -> None:
    tiny, printed = trained
    summary = json.loads((tiny.fold(0) / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 3
    assert printed.count("predicting tr_") == 2  # rank 0's; only rank 0 speaks
    assert not (tiny.fold(0) / "validation_ranks").exists()


def little_room(rank: int) -> None:
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def dies(rank: int) -> None:
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

    def die(*arguments: Any) -> None:
        os._exit(9)

    if rank == 1:
        stock.export_prediction_from_logits = die


def test_a_validation_that_a_rank_cannot_finish_names_it(trained: tuple[Tiny, str]) -> None:
    tiny, _ = trained
    full = run_ranks(tiny.env, *words(tiny, TRAINER, "--val", "--npz"), before=little_room)
    assert [rank.status for rank in full] == [2, 2]
    assert "could not write" in full[1].error_lines[0] and "rank 1 on" in full[1].error_lines[0]
    assert "rank 1 on" in full[0].error_lines[0] and "has failed" in full[0].error_lines[0]

    died = run_ranks(tiny.env, *words(tiny, TRAINER, "--val"), before=dies)
    assert died[1].status == 9
    line = line_of(died)
    assert "final validation: rank 1 on" in line and "has ended before it was done; repeat it with --val" in line
