"""A disk that is full while a checkpoint is written (a limit on file sizes stands in for it): the old one stays."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
import torch

from tests.end_to_end.commands import Finished, environment, run_warm
from tests.end_to_end.conftest import kill_when_started
from tests.end_to_end.tiny import TRAINER, Tiny

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs bash and ulimit")


def run_limited(tiny: Tiny, kilobytes: int) -> Finished:
    """Train fold 0 by the real command under a limit on the size of every file."""
    script = f"ulimit -f {kilobytes} && exec {shlex.join(map(str, tiny.train(0)))}"
    process = subprocess.run(
        ["bash", "-c", script], env=environment(tiny.env), capture_output=True, text=True, timeout=300
    )
    return Finished(script, process.returncode, process.stdout, process.stderr)


def check_told(finished: Finished) -> None:
    assert finished.status == 2, finished.stdout + finished.stderr
    (line,) = finished.error_lines
    for words in ("checkpoint_latest.pth: could not be written", "free disk space", "--c"):
        assert words in line
    assert "Traceback" not in finished.stdout + finished.stderr


def test_no_room_for_a_later_checkpoint(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    latest = tiny.fold(0) / "checkpoint_latest.pth"
    kill_when_started(tiny.env, tiny.fold(0), *map(str, tiny.train(0)))
    first_size = latest.stat().st_size
    latest.unlink()
    block = tiny.read_plans()["configurations"][tiny.configuration]["ctnet"]
    tiny.change_configuration(ctnet={**block, "save_minutes": 1e-6})

    check_told(run_limited(tiny, first_size // 1024 // 2))
    assert not list(tiny.fold(0).glob("*checkpoint*"))

    # The optimiser's two moments make every later checkpoint three times as large as the first.
    check_told(run_limited(tiny, first_size * 2 // 1024))
    assert [file.name for file in tiny.fold(0).glob("*checkpoint*")] == [latest.name]
    assert torch.load(latest, weights_only=True)["current_epoch"] == 0

    run_warm(tiny.env, *tiny.train(0, TRAINER, "--c")).succeeded()
    assert torch.load(tiny.fold(0) / "checkpoint_final.pth", weights_only=True)["current_epoch"] == 2
