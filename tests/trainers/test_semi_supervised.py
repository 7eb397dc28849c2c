"""What the semi-supervised trainers refuse at a start, and pieces of them that need no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.trainers.reciprocal import nnUNetTrainerReciprocal
from ctnet_nnunet.trainers.resilient import ResilientTrainer
from ctnet_nnunet.trainers.supervised_twin import nnUNetTrainerSupervisedTwin


def trainer(kind: type[Any] = nnUNetTrainerReciprocal, resuming: bool = False, **values: Any) -> Any:
    """A trainer of which only the options are there."""
    made = kind.__new__(kind)
    made.options = read_options({"epochs": 25, "semi_supervised": values})
    made.semi, made.schedule = made.options.semi_supervised, made.options.schedule("semi_supervised")
    made.resuming, made.network, made.pool = resuming, nn.Linear(1, 1), None
    return made


def test_a_teacher_has_one_start(tmp_path: Path) -> None:
    both = {"teacher_weights": str(tmp_path / "gone.pth"), "teacher_from_pretrained": True}
    with pytest.raises(PlanError, match="teacher_weights and semi_supervised.teacher_from_pretrained=true") as caught:
        trainer(**both).check_start()
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no -pretrained_weights FILE"):
        trainer(teacher_from_pretrained=True).check_start()


def test_a_continued_training_asks_for_no_start(tmp_path: Path) -> None:
    trainer(resuming=True, teacher_from_pretrained=True).check_start()
    trainer(resuming=True, teacher_weights=str(tmp_path / "gone.pth")).check_start()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("loss", ["ce", "dice_ce"])
def test_a_batch_in_which_all_is_ignored_has_a_loss_of_zero(
    loss: str, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    inner = DC_and_CE_loss(kwargs, {}, ignore_label=2, dice_class=MemoryEfficientSoftDiceLoss)
    stock = DeepSupervisionWrapper(inner, [1.0, 0.5]) if deep else inner
    monkeypatch.setattr(ResilientTrainer, "_build_loss", lambda self: stock)
    built = trainer(nnUNetTrainerSupervisedTwin, loss=loss)._build_loss()
    logits, target = torch.randn(2, 2, 4, 4, requires_grad=True), torch.full((2, 1, 4, 4), 2.0)
    value = built([logits, logits], [target, target]) if deep else built(logits, target)
    value.backward()
    if loss == "ce":
        assert value.item() == 0.0 and float(logits.grad.abs().max()) == 0.0
    target[0] = 1.0
    value = built([logits, logits], [target, target]) if deep else built(logits, target)
    assert value.item() != 0.0
