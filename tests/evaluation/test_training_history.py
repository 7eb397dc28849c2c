"""Histories from our checkpoints, from stock ones (never unpickled) and from text logs."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.evaluation.training_history import read_history

LOG_1 = """
2026-11-20 10:00:00.1: Epoch 0
2026-11-20 10:00:01.1: train_loss -0.1
2026-11-20 10:00:01.2: val_loss 0.05
2026-11-20 10:00:01.3: Pseudo dice [np.float32(0.5), np.float32(0.7), nan]
2026-11-20 10:00:02.1: Epoch 1
2026-11-20 10:00:02.2: train_loss -0.2
"""
LOG_2 = """
2026-11-20 11:00:02.1: Epoch 1
2026-11-20 11:00:02.2: train_loss -0.3
2026-11-20 11:00:02.3: val_loss -0.25
2026-11-20 11:00:02.4: Pseudo dice [0.8, 0.6]
"""


class _Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))


def test_from_a_checkpoint(tmp_path: Path) -> None:
    logging = {"train_losses": [0.5, -0.1], "val_losses": [0.4], "mean_fg_dice": [0.1, 0.3], "lrs": [1e-3, 1e-4]}
    torch.save({"logging": logging, "network_weights": {}}, tmp_path / "checkpoint_latest.pth")

    history = read_history(tmp_path, "fold 0")

    assert history is not None
    assert (history.train_loss, history.validation_loss, history.score) == ((0.5, -0.1), (0.4,), (0.1, 0.3))
    assert history.epochs == 2


def test_text_logs_of_a_resumed_training(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026_11_20_10_00_00.txt").write_text(LOG_1)
    (tmp_path / "training_log_2026_11_20_11_00_00.txt").write_text(LOG_2)

    history = read_history(tmp_path, "fold 0")

    assert history is not None
    assert history.train_loss == (-0.1, -0.3)
    assert history.validation_loss == (0.05, -0.25)
    assert history.score == (pytest.approx(0.6), pytest.approx(0.7))


def test_a_hostile_checkpoint_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"logging": _Trap()}, tmp_path / "checkpoint_final.pth")
    (tmp_path / "training_log_2026_11_20_10_00_00.txt").write_text(LOG_1)

    history = read_history(tmp_path, "fold 0")

    assert not (tmp_path / "unpickled").exists()
    assert history is not None
    assert history.epochs == 2
    assert math.isclose(history.train_loss[0], -0.1)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1})])
def test_a_broken_checkpoint_and_no_log_give_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(content)

    assert read_history(tmp_path, "fold 0") is None
