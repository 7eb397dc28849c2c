"""Why something ended, and how far a training is, from what logs really hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctnet_nnunet.cluster.progress import read_progress, run_on
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
RANKED = """[rank1]: Traceback (most recent call last):
[rank1]:   File "boom.py", line 6, in <module>
[rank1]:     raise ValueError("mask and image differ in shape")
[rank1]: ValueError: mask and image differ in shape
"""
OURS_RANKED = "ctnet: error: 3d_fullres: the plan's batch of 2 is smaller than the 3 processes; start 2 of them\n"


def torchrun(said: str, status: int) -> str:
    """The end of a log when the second of two processes fails; torch's own words, shortened."""
    api = "torch/distributed/elastic/multiprocessing"
    return f"""{said}W1128 00:42:57.489000 17069 {api}/api.py:1012] Sending process 17074 closing signal SIGTERM
E1128 00:42:57.560000 17069 {api}/api.py:986] failed (exitcode: {status}) local_rank: 1 (pid: 17075) of binary: python
Traceback (most recent call last):
  File "bin/torchrun", line 8, in <module>
    sys.exit(main())
             ^^^^^^
  File "torch/distributed/launcher/api.py", line 317, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: 
============================================================
boom.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-28_00:42:57
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 17074)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 17074
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-28_00:42:57
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {status} (pid: 17075)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================
"""  # noqa: W291


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
        (1, torchrun(RANKED, 1), "", "ValueError: mask and image differ in shape"),
        (1, torchrun("", -9), "", "killed by SIGKILL, most likely for lack of memory"),
        (1, torchrun("", 75), "", "interrupted; its checkpoint is written"),
        (1, torchrun(OURS_RANKED, 2), "", "3d_fullres: the plan's batch of 2 is smaller than the 3 processes"),
        (1, torchrun(CUDA.replace("torch.Out", "[rank0]: torch.Out"), 1), "", "out of GPU memory: torch.OutOfMemory"),
        (1, torchrun("", 3), "", "ended with status 3"),
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
    assert progress is not None and progress.epoch_seconds == {6: 16.26}
    assert str(progress) == "epoch 7/25, 7 min left, Dice 0.450"
    log.write_text("\n".join(line for line in OURS_LOG.splitlines() if "done" not in line))
    assert str(read_progress(tmp_path, segments=False)) == "epoch 7"


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ({"device": "cuda:0", "is_ddp": "False"}, ("cuda", 1)),
        ({"device": "cuda:0", "is_ddp": "True", "processes": "4"}, ("cuda", 4)),
        ({"device": "cpu", "is_ddp": "True"}, None),
        ({}, None),
    ],
)
def test_on_what_a_fold_was_trained(tmp_path: Path, left: dict[str, str], expected: tuple[str, int] | None) -> None:
    assert run_on(tmp_path) is None
    (tmp_path / "debug.json").write_text(json.dumps(left))
    assert run_on(tmp_path) == expected
