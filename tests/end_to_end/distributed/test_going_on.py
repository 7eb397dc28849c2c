"""Which checkpoint is gone on from, and what torchrun says of a process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.checkpoints import write_checkpoint
from ctnet_nnunet.train.going_on import last_intact, launcher_started
from ctnet_nnunet.train.group import Launch

NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def written(folder: Path, name: str, age: float = 0.0) -> Path:
    file = folder / name
    write_checkpoint({"network_weights": {"w": torch.zeros(1)}}, file)
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_the_first_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert last_intact(tmp_path) is None
    final, latest, best = (written(tmp_path, name) for name in NAMES)
    assert last_intact(tmp_path) == final
    final.unlink()
    assert last_intact(tmp_path) == latest
    latest.write_bytes(latest.read_bytes()[:200])  # cut off, as stock's writing in place leaves it
    assert last_intact(tmp_path) == best
    assert f"left out: {latest}: cannot be read as a checkpoint" in capsys.readouterr().out


def test_an_earlier_trainings_are_left_out(tmp_path: Path) -> None:
    final, latest = written(tmp_path, NAMES[0], age=3600), written(tmp_path, NAMES[1], age=1)
    assert last_intact(tmp_path, time.time() - 60) == latest
    assert last_intact(tmp_path, time.time()) is None
    assert last_intact(tmp_path) == final


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")
def test_the_launcher_is_the_process_above() -> None:
    reading, writing = os.pipe()
    began = time.time()
    if os.fork() == 0:  # the launcher
        time.sleep(1.5)
        if os.fork() == 0:  # what it has started
            os.write(writing, repr(launcher_started()).encode())
            os._exit(0)
        os.wait()
        os._exit(0)
    os.wait()
    assert float(os.read(reading, 100)) == pytest.approx(began, abs=1.2)


def test_without_torchrun_a_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Launch.from_environment() == Launch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert Launch.from_environment() == Launch(5, 8, 1, 4, 2, by_torchrun=True)
