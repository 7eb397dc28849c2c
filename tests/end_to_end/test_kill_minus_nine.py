"""A killed training goes on as if nobody had killed it; the script beside this file does it twenty times."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ctnet_nnunet.checkpoints import read_checkpoint
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.kill_minus_nine import kill_again_and_again, planned_for
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny

KILLS = 4


def test_kill_minus_nine(nnunet_env: NnunetEnv) -> None:
    tiny = planned_for(KILLS, nnunet_env, 650)
    outcome = kill_again_and_again(tiny, TRAINER, KILLS, random.Random(1))
    assert outcome.faults == [], outcome.summary()
    assert len(outcome.kills) == KILLS


@pytest.mark.parametrize("trainer", [TRAINER, PRETRAINER, "nnUNetTrainerReciprocal", "nnUNetTrainerMeanTeacher"])
def test_an_interrupted_training_ends_like_an_undisturbed_one(copy_of_planned: Tiny, trainer: str) -> None:
    """Two epochs of two steps, ended in an epoch, behind its last step and in the next: the same network to the bit."""
    tiny = copy_of_planned
    block = tiny.read_plans()["configurations"][tiny.configuration]["ctnet"]
    tiny.change_configuration(ctnet={**block, "save_minutes": 1e-6})
    folder = tiny.fold(0, trainer)
    run_warm(tiny.env, *tiny.train(0, trainer)).succeeded()
    undisturbed = read_checkpoint(folder / "checkpoint_final.pth")
    for step, place in ((1, (0, 1)), (2, (0, 2)), (3, (1, 1))):
        stopped = run_function(tiny.env, functools.partial(_train_and_stop, str(tiny.id), trainer, step))
        assert stopped.status == STOPPED, stopped.stderr
        left = read_checkpoint(folder / "checkpoint_latest.pth")
        assert (left["current_epoch"], len(left["ctnet"]["epoch_outputs"])) == place
        run_warm(tiny.env, *tiny.train(0, trainer, "--c")).succeeded()
        compare(read_checkpoint(folder / "checkpoint_final.pth"), undisturbed)


def test_every_phase_of_reciprocal_learning_goes_on(copy_of_planned: Tiny) -> None:
    """One epoch of two steps each: the teacher's, reciprocal learning, and the student's, which leaves the teacher."""
    tiny = copy_of_planned
    block = tiny.read_plans()["configurations"][tiny.configuration]["ctnet"]
    semi = {
        "teacher_pretraining": 0.34, "student_finetune_epochs": 1, "feedback_baseline": 0.5,
        "student_from_teacher": True, "predict_with": "teacher",
    }  # fmt: skip
    changed = {**block, "save_minutes": 1e-6, "epochs": 3, "semi_supervised": semi}
    tiny.change_configuration(ctnet=changed)
    trainer = "nnUNetTrainerReciprocal"
    final = tiny.fold(0, trainer) / "checkpoint_final.pth"
    printed = run_warm(tiny.env, *tiny.train(0, trainer)).succeeded().stdout
    assert [printed.count(f"phase: {phase}") for phase in ("teacher", "reciprocal", "student")] == [1, 1, 1]
    undisturbed = read_checkpoint(final)
    left = {}
    for step, place in ((2, (0, 2)), (3, (1, 1)), (5, (2, 1))):
        stopped = run_function(tiny.env, functools.partial(_train_and_stop, str(tiny.id), trainer, step))
        assert stopped.status == STOPPED, stopped.stderr
        left[place] = read_checkpoint(final.with_name("checkpoint_latest.pth"))
        assert (left[place]["current_epoch"], len(left[place]["ctnet"]["epoch_outputs"])) == place
        run_warm(tiny.env, *tiny.train(0, trainer, "--c")).succeeded()
        compare(read_checkpoint(final), undisturbed, epochs=3)
        assert read_checkpoint(final)["ctnet"]["reciprocal_step"] == undisturbed["ctnet"]["reciprocal_step"]
    assert undisturbed["ctnet"]["reciprocal_step"]["baseline"] != 0.0
    for place, student_moves, teacher_moves in (((2, 1), True, False), ((1, 1), True, True)):
        assert moved(left[place]["ctnet"]["student_weights"], undisturbed["ctnet"]["student_weights"]) is student_moves
        assert moved(left[place]["network_weights"], undisturbed["network_weights"]) is teacher_moves


def moved(before: dict[str, torch.Tensor], behind: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(weight, behind[name]) for name, weight in before.items())


def compare(resumed: dict[str, Any], undisturbed: dict[str, Any], epochs: int = 2) -> None:
    """Equal weights of the network and of a teacher, in pretraining of the heads, too; an equal log of all epochs."""
    wanted, found = (
        {
            **checkpoint["network_weights"],
            **checkpoint["ctnet"].get("pretext_state", {}),
            **{
                f"{other}.{key}": value
                for other in ("teacher_weights", "student_weights")
                for key, value in checkpoint["ctnet"].get(other, {}).items()
            },
        }
        for checkpoint in (undisturbed, resumed)
    )
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(weight, found[name]), name
    for name in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        assert resumed["logging"][name] == undisturbed["logging"][name]
        assert len(resumed["logging"][name]) == epochs


STOPPED = 9


def _train_and_stop(dataset: str, trainer_name: str, step: int) -> None:
    """Train fold 0 and end the process, without any clearing up, behind the given step and its checkpoint."""
    import os

    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", 0, trainer_name, "CTNetPlans", device=torch.device("cpu"))
    save, saved = trainer.save_checkpoint, []

    def save_and_stop(filename: str) -> None:
        save(filename)
        if Path(filename).name == "checkpoint_latest.pth":
            saved.append(len(trainer._epoch_outputs))
        # The first checkpoint is from before the first step; those behind an epoch come at no step of their own.
        if sum(outputs > 0 for outputs in saved) == step:
            os._exit(STOPPED)

    trainer.save_checkpoint = save_and_stop
    trainer.run_training()
