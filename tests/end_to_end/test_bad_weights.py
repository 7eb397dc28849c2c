"""Weights and checkpoints that don't fit, are broken, carry code or are not there, under the stock commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import write_checkpoint
from tests.end_to_end.commands import Finished, run, run_warm
from tests.end_to_end.refusals import check_refused
from tests.end_to_end.tiny import TRAINER, Tiny


def other_network(tiny: Tiny, features: int) -> dict[str, torch.Tensor]:
    """Weights of the same plan with other features."""
    architecture = tiny.read_plans()["configurations"][tiny.configuration]["architecture"]
    architecture["arch_kwargs"]["features_per_stage"] = [features, 2 * features, 4 * features]
    return network_from_plan(architecture, 1, 3, True).state_dict()


def test_weights_of_another_plan(copy_of_planned: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    write_checkpoint({"network_weights": other_network(copy_of_planned, 8)}, file)
    finished = run_warm(copy_of_planned.env, *copy_of_planned.train(0, TRAINER, "-pretrained_weights", file))
    said = ("do not fit this plan's network", "same -d, -p and configuration")
    check_refused(finished, copy_of_planned, str(file), *said)
    check_table(finished)


def check_table(finished: Finished) -> None:
    """Wanted, found and action for a dozen keys at most, and no tensors."""
    lines = finished.stdout.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split() == ["key", "wanted", "found", "action"]]
    rows = lines[start + 1 : start + 13]
    assert any("4x1x3x3x3" in row and "8x1x3x3x3" in row and row.endswith("shape differs") for row in rows)
    assert lines[start + 13].startswith("… and ")
    assert "tensor(" not in finished.stdout


def test_weights_that_are_not_there(copy_of_planned: Tiny, tmp_path: Path) -> None:
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "no.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "no.pth: no such checkpoint")


@pytest.mark.parametrize("content", [b"garbage", b"PK\x03\x04 cut off", b""])
def test_weights_that_are_no_checkpoint(copy_of_planned: Tiny, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "bad.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "bad.pth: cannot be read as a checkpoint")


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_weights_that_carry_code(copy_of_planned: Tiny, tmp_path: Path) -> None:
    torch.save({"network_weights": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    words = copy_of_planned.train(0, TRAINER, "-pretrained_weights", tmp_path / "hostile.pth")
    finished = run_warm(copy_of_planned.env, *words)
    check_refused(finished, copy_of_planned, "hostile.pth: cannot be read", "Python objects")
    assert not (tmp_path / "ran").exists()


def test_continuing_what_was_never_started(copy_of_planned: Tiny) -> None:
    """Stock would start a new training; by the real command, as a user types it."""
    finished = run(copy_of_planned.env, *copy_of_planned.train(0, TRAINER, "--c"))
    check_refused(finished, copy_of_planned, "--c", "fold_0", "no checkpoint to continue from", "start without --c")


def test_continuing_from_another_plan_and_from_a_broken_file(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    file = tiny.fold(0) / "checkpoint_latest.pth"
    file.parent.mkdir(parents=True)
    write_checkpoint({"network_weights": other_network(tiny, 8)}, file)
    written = file.read_bytes()
    finished = run_warm(tiny.env, *tiny.train(0, TRAINER, "--c"))
    assert (finished.status, len(finished.error_lines)) == (2, 1)
    assert "written with another plan" in finished.error_lines[0]
    check_table(finished)
    assert file.read_bytes() == written
    file.write_bytes(written[: len(written) // 2])
    finished = run_warm(tiny.env, *tiny.train(0, TRAINER, "--c"))
    assert (finished.status, len(finished.error_lines)) == (2, 1)
    assert "cannot be read as a checkpoint" in finished.error_lines[0]
    assert "Traceback" not in finished.stderr
