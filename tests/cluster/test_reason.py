"""Why something ended, and how far a training is, from what logs really hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.cluster.progress import read_progress
from ctnet_nnunet.cluster.reason import reason_of, slurm_state_in

CUDA = """Traceback (most recent call last):
  File "x.py", line 3, in train_step
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB
"""
OURS = """2026-11-27 20:46:24.304967: Epoch 3
ctnet: error: fold_0/checkpoint_latest.pth: could not be written (No space left on device); free disk space
"""
WORKERS = """Traceback (most recent call last):
  File "run_training.py", line 211, in run_training
RuntimeError: One or more background workers are no longer alive.
exiting the rest
"""


@pytest.mark.parametrize(
    ("status", "text", "state", "expected"),
    [
        (1, CUDA, "", "out of GPU memory: torch.OutOfMemoryError: CUDA out of memory."),
        (2, OURS, "", "the disk is full: fold_0/checkpoint_latest.pth: could not be written"),
        (1, WORKERS, "", "RuntimeError: One or more background workers are no longer alive."),
        (-9, "", "", "killed by SIGKILL, most likely for lack of memory"),
        (75, "anything", "", "interrupted; its checkpoint is written"),
        (-11, "some words", "", "ended by signal 11"),
        (1, "", "OUT_OF_MEMORY", "killed for its memory"),
        (1, CUDA, "TIMEOUT", "the wall time ended"),
        (None, "", "CANCELLED by 1000", "cancelled"),
        (3, "last words\n\n", "", "last words"),
        (3, "", "", "ended with status 3"),
    ],
)
def test_reasons(status: int | None, text: str, state: str, expected: str) -> None:
    assert reason_of(status, text, state).startswith(expected)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("slurmstepd: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-11-27T21:00:00 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd: error: *** JOB 5 ON node1 CANCELLED AT 2026-11-27T21:00:00 DUE TO PREEMPTION ***", "PREEMPTED"),
        ("slurmstepd: error: *** JOB 5 ON node1 CANCELLED AT 2026-11-27T21:00:00 ***", "CANCELLED"),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0. Some of the step tasks have",
            "OUT_OF_MEMORY",
        ),
        ("submitit INFO - Starting", ""),
    ],
)
def test_slurm_s_own_lines(line: str, state: str) -> None:
    assert slurm_state_in(f"before\n{line}\nbehind") == state


OURS_LOG = """2026-11-27 20:46:24.367541: Epoch 6 
2026-11-27 20:46:40.629155: train_loss -0.5454 
2026-11-27 20:46:40.629799: Pseudo dice [np.float32(0.8), nan, np.float32(1e-1)] 
2026-11-27 20:46:40.629948: Epoch time: 16.26 s 
2026-11-27 20:46:41.957417: epoch 7/25 done, 7 min left 
2026-11-27 20:46:41.961781: Epoch 7 
"""  # noqa: W291


def test_progress_of_our_trainers_and_of_stock(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    log = tmp_path / "training_log_2026_11_27_20_43_48.txt"
    log.write_text(OURS_LOG)
    progress = read_progress(tmp_path)
    assert progress is not None and progress.epoch_seconds == (16.26,)
    assert str(progress) == "epoch 7/25, 7 min left, Dice 0.450"
    log.write_text("\n".join(line for line in OURS_LOG.splitlines() if "done" not in line))
    assert str(read_progress(tmp_path, segments=False)) == "epoch 7"
