"""What the semi-supervised trainers refuse at a start, and pieces of them that need no training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from ctnet_nnunet.errors import CheckpointError, PlanError
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.trainers.reciprocal import is_measured, nnUNetTrainerReciprocal
from ctnet_nnunet.trainers.resilient import ResilientTrainer
from ctnet_nnunet.trainers.schedule import encoder_rate_of
from ctnet_nnunet.trainers.supervised_twin import nnUNetTrainerSupervisedTwin

EPOCHS = 25
ANEW = {"student_from_teacher": False, "teacher_pretraining": 0.25}


def trainer(kind: type[Any] = nnUNetTrainerReciprocal, resuming: bool = False, **values: Any) -> Any:
    """A trainer of which only the options are there."""
    made = kind.__new__(kind)
    made.options = read_options({"epochs": EPOCHS, "semi_supervised": values})
    made.semi, made.schedule = made.options.semi_supervised, made.options.schedule("semi_supervised")
    made.resuming, made.network, made.pool = resuming, nn.Linear(1, 1), None
    made.log = []
    made.print_to_log_file = lambda *words: made.log.append(" ".join(words))
    return made


def test_a_teacher_has_one_start(tmp_path: Path) -> None:
    both = {"teacher_weights": str(tmp_path / "gone.pth"), "teacher_from_pretrained": True}
    with pytest.raises(PlanError, match="teacher_weights and semi_supervised") as caught:
        trainer(**both).check_start()
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no -pretrained_weights FILE"):
        trainer(teacher_from_pretrained=True).check_start()


@pytest.mark.parametrize("weights", [None, "teacher.pth"])
def test_pretrained_weights_are_not_thrown_away_without_a_word(weights: str | None) -> None:
    made = trainer(teacher_from_pretrained=False if weights is None else None, teacher_weights=weights)
    made.network.pretrained_from = "pretrained.pth"
    remedy = "set teacher_from_pretrained=true" if weights is None else "leave -pretrained_weights out"
    with pytest.raises(PlanError, match=f"would replace those that -pretrained_weights gives.*{remedy}"):
        made.check_start()
    for values in ({}, {"teacher_from_pretrained": True}, {"student_from_teacher": False}):
        kept = trainer(**values)
        kept.network.pretrained_from = "pretrained.pth"
        kept.check_start()
        assert kept.teacher_takes_pretrained is ("student_from_teacher" not in values)
    assert not trainer().teacher_takes_pretrained


def test_a_teacher_s_encoder_is_slowed_down_as_soon_as_it_is_known_to_be_given() -> None:
    made = trainer()
    made.options = read_options({"encoder_rate": 0.1, "epochs": EPOCHS})
    made.teacher = nn.ModuleDict({"encoder": nn.Linear(1, 1), "decoder": nn.Linear(1, 1)})
    made._build_teacher_optimizer()
    made.step = SimpleNamespace(teacher_optimizer=made.teacher_optimizer)
    at_first = made.teacher_optimizer
    made._follow_pretrained_weights()
    assert made.teacher_optimizer is at_first and encoder_rate_of(at_first.param_groups) == 1
    made.network.pretrained_from = "pretrained.pth"
    made._follow_pretrained_weights()
    assert encoder_rate_of(made.teacher_optimizer.param_groups) == 0.1
    assert made.step.teacher_optimizer is made.teacher_optimizer
    made.teacher_schedule.step(0)
    assert len({group["lr"] for group in made.teacher_optimizer.param_groups}) == 2


def continued(epoch: int = 0, epochs: int = EPOCHS, **values: Any) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """A trainer that goes on, its encoder at a tenth of the rate, and what gives its checkpoint's own part."""
    made = trainer(resuming=True, **values)
    made.options = read_options({"encoder_rate": 0.1, "epochs": epochs, "semi_supervised": values})
    made.schedule, made.current_epoch, made._epoch_outputs = made.options.schedule("semi_supervised"), epoch, []
    made.network = nn.ModuleDict({"encoder": nn.Linear(1, 1), "decoder": nn.Linear(1, 1)})
    made.optimizer = made.new_optimizer(made.network, 0.1)
    made.teacher, made.output_folder, made.labelled_cases = copy.deepcopy(made.network), "fold_0", ["a"]
    made._build_teacher_optimizer()
    made.lr_scheduler = made.schedule_of(made.optimizer, made.student_phases())
    made.step = SimpleNamespace(
        teacher_optimizer=made.teacher_optimizer, state_dict=dict, load_state_dict=lambda state: None
    )
    return made, made.extra_state


def test_continuing_finds_the_teacher_s_encoder_slowed_down() -> None:
    first, state = continued()
    first.network.pretrained_from = "pretrained.pth"
    first._follow_pretrained_weights()
    again, _ = continued()
    again.load_extra_state(state())
    assert encoder_rate_of(again.teacher_optimizer.param_groups) == 0.1
    assert again.step.teacher_optimizer is again.teacher_optimizer


@pytest.mark.parametrize("key", ["student_from_teacher", "teacher_restarts"])
def test_continuing_under_another_start_or_schedule_is_refused(key: str) -> None:
    _, state = continued(**{key: True})
    again, _ = continued(**{key: False})
    with pytest.raises(CheckpointError, match=rf"begun with semi_supervised\.{key}=true, now it is false; set it back"):
        again.load_extra_state(state())


def test_a_validation_needs_no_start_and_no_optimiser() -> None:
    _, state = continued(preset="nnunet")
    validated, _ = continued(preset="rlsss")
    with pytest.raises(CheckpointError, match=r"begun with semi_supervised\.student_from_teacher=true"):
        validated.load_extra_state(state())
    validated.resuming = False
    validated.load_extra_state(state())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "sgd"}, r"trained with Adam \(.*weight_decay \S+\), the plan now has SGD \(momentum 0\.9"),
        ({"weight_decay": 0.5}, r".*the plan now has Adam \(betas 0\.9, 0\.999, weight_decay 0\.5\)"),
    ],
)
def test_another_optimiser_for_the_teacher_is_refused(values: dict[str, Any], words: str) -> None:
    _, state = continued()
    again, _ = continued(**values)
    with pytest.raises(CheckpointError, match=f"--c: the teacher in fold_0 was {words}.*; set that"):
        again.load_extra_state(state())


@pytest.mark.parametrize(
    ("epoch", "steps", "epochs", "teachers"),
    [
        (10, 0, 25, 15),  # as it was planned
        (10, 0, 250, 150),  # still the teacher's phase: its share of more epochs
        (10, 0, 20, 12),
        (13, 0, 20, 13),  # beyond its share of fewer: the next epoch is the first for both
        (13, 3, 20, 14),  # but one that was begun is the teacher's
        (15, 0, 250, 15),  # behind it: not thrown back
        (20, 3, 18, 15),  # both have learned: it may end
    ],
)
def test_of_another_number_of_epochs(epoch: int, steps: int, epochs: int, teachers: int) -> None:
    _, state = continued()
    again, _ = continued(epoch=epoch, epochs=epochs)
    again._epoch_outputs = [{}] * steps
    again.load_extra_state(state())
    assert again.phases.teachers == teachers
    assert again.log == ([] if teachers == round(0.6 * epochs) else [again.log[0]])
    anew, _ = continued(epoch=epoch, epochs=epochs, **ANEW, teacher_restarts=True)
    anew._epoch_outputs = [{}] * steps
    anew.load_extra_state(continued(**ANEW, teacher_restarts=True)[1]())
    first = anew.phases.teachers
    parts = [(0, first), (first, epochs - first)]
    assert anew.student_phases() == parts and [part[0] for part in anew.lr_scheduler.phases] == [0, first]


@pytest.mark.parametrize(("epoch", "steps", "epochs", "finetuning"), [(14, 2, 15, 0), (14, 0, 12, 0), (10, 0, 25, 10)])
def test_continuing_without_an_epoch_for_both_is_refused(epoch: int, steps: int, epochs: int, finetuning: int) -> None:
    _, state = continued()
    again, _ = continued(epoch=epoch, epochs=epochs, student_finetune_epochs=finetuning)
    again._epoch_outputs = [{}] * steps
    with pytest.raises(CheckpointError, match=r"^--c: .* none is left for reciprocal learning; raise epochs, or train"):
        again.load_extra_state(state())


def test_a_frozen_encoder_may_come_from_the_teacher() -> None:
    made = trainer(teacher_weights="teacher.pth")
    made._frozen, made.is_cascaded = True, False
    made._refuse_frozen_random_encoder()
    alone = trainer(teacher_weights="teacher.pth", student_from_teacher=False)
    alone._frozen, alone.is_cascaded = True, False
    with pytest.raises(PlanError, match="would stay random"):
        alone._refuse_frozen_random_encoder()


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


def rates(schedule: Any, optimizer: torch.optim.Optimizer, epochs: int = EPOCHS) -> list[float]:
    found = []
    for epoch in range(epochs):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def student_rates(made: Any) -> list[float]:
    optimizer = made.new_optimizer(made.network, 1.0)
    return rates(made.schedule_of(optimizer, made.student_phases()), optimizer)


def teacher_rates(made: Any) -> list[float]:
    optimizer = made.new_optimizer(made.network, 1.0)
    last = EPOCHS - made.semi.student_finetune_epochs
    return rates(made.schedule_of(optimizer, made.phases.teacher()), optimizer, last)


def test_a_phase_is_warmed_up_for_a_tenth_of_its_own_epochs() -> None:
    made = trainer(**ANEW)
    peak = made.schedule.learning_rate
    assert made.phases.teachers == 6
    found = student_rates(made)
    assert found[0] == pytest.approx(peak / 1.6)  # 0.6 epochs of 6
    assert found[6:8] == pytest.approx([peak / 2.9, 2 * peak / 2.9])  # 1.9 of 19
    same_in_each = trainer(**ANEW, warmup_epochs=2.5)
    assert student_rates(same_in_each)[0] == pytest.approx(peak / 3.5)
    twin = trainer(nnUNetTrainerSupervisedTwin)
    assert student_rates(twin)[0] == pytest.approx(peak / 3.5)  # one phase, 2.5 of 25


def test_the_teacher_learns_in_one_decay_up_to_its_last_step() -> None:
    found = teacher_rates(trainer(student_finetune_epochs=5))
    twin = student_rates(trainer(nnUNetTrainerSupervisedTwin))
    assert teacher_rates(trainer()) == twin
    assert len(found) == 20 and found[3:] == sorted(found[3:], reverse=True) and found[-1] < 0.12 * max(found)
    again = teacher_rates(trainer(preset="rlsss"))  # published: two trainings
    assert again[:12] == pytest.approx([0.01] * 5 + [0.001] * 5 + [0.0001] * 2)
    assert again[12:18] == pytest.approx([0.01] * 6)


def test_a_student_of_the_teachers_weights_goes_on_at_the_teachers_rate() -> None:
    made = trainer(student_from_teacher=True)
    assert student_rates(made) == teacher_rates(made)
    restarted = trainer(teacher_pretraining=0.25, student_from_teacher=True, teacher_restarts=True)
    assert student_rates(restarted) == student_rates(trainer(**ANEW))


@pytest.mark.parametrize(("teacher_pretraining", "student_finetune_epochs"), [(0.5, 13), (0.99, 0), (0.0, 25)])
def test_phases_that_leave_no_epoch_for_reciprocal_learning(
    teacher_pretraining: float, student_finetune_epochs: int
) -> None:
    made = trainer(teacher_pretraining=teacher_pretraining, student_finetune_epochs=student_finetune_epochs)
    with pytest.raises(PlanError, match=r"of the 25 epochs \d+ are the teacher's and \d+ the student's"):
        made.build_teacher(made.network)


def test_an_epoch_costs_what_it_takes() -> None:
    made = trainer(student_finetune_epochs=3, teacher_pretraining=0.25)
    assert made.costs_of_epochs() == made.planned_costs(made.options, EPOCHS) == [1.0] * 6 + [4.0] * 16 + [1.0] * 3


@pytest.mark.parametrize("preset", ["rlsss", "nnunet"])
def test_all_but_the_decoder_is_slower_if_asked_for(preset: str) -> None:
    slow = trainer(nnUNetTrainerSupervisedTwin, preset=preset)
    expected = student_rates(slow)
    slow.network = nn.ModuleDict({"encoder": nn.Linear(1, 1), "decoder": nn.Linear(1, 1)})
    optimizer = slow.new_optimizer(slow.network, 0.1)
    schedule = slow.schedule_of(optimizer, slow.student_phases())
    for epoch in range(EPOCHS):
        schedule.step(epoch)
        found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for part, factor in (("encoder", 0.1), ("decoder", 1.0)):
            for parameter in slow.network[part].parameters():
                assert found[id(parameter)] == pytest.approx(factor * expected[epoch])


def test_a_teacher_that_starts_at_random_is_not_slowed_down(tmp_path: Path) -> None:
    for values, expected in (
        ({}, 1.0), ({"teacher_from_pretrained": True}, 0.1), ({"teacher_weights": str(tmp_path / "w.pth")}, 0.1),
    ):  # fmt: skip
        made = trainer(**values)
        made.options = read_options({"encoder_rate": 0.1, "semi_supervised": values})
        assert made._encoder_rate_of_teacher() == expected


def test_the_student_starts_as_the_teacher_is_if_asked_to() -> None:
    for wanted in (False, True):
        made = trainer(student_from_teacher=wanted)
        made.teacher = nn.Linear(1, 1)
        made.teacher_optimizer = torch.optim.AdamW(made.teacher.parameters())
        made.teacher_optimizer.state[made.teacher.weight]["step"] = 3
        made.start_reciprocal()
        assert bool(made.teacher_optimizer.state)
        assert torch.equal(made.network.weight, made.teacher.weight) is wanted
        assert made.network.weight is not made.teacher.weight
    with pytest.raises(PlanError, match="student_from_teacher=true: the teacher has learned nothing"):
        trainer(student_from_teacher=True, teacher_pretraining=0.0).check_start()


def test_the_feedbacks_share_is_measured_in_a_few_steps_of_an_epoch() -> None:
    assert [step for step in range(250) if is_measured(step, 250)] == [0, 63, 126, 189]
    assert [step for step in range(2) if is_measured(step, 2)] == [0]


def test_a_silent_feedback_is_said_once_and_not_in_the_warm_up() -> None:
    made = trainer(teacher_pretraining=0.25)
    for epoch, share in ((6, 0.001), (8, 0.02), (9, 0.006), (10, 0.001)):
        made.current_epoch, made.train_metrics = epoch, {"feedback_share": share}
        made.warn_of_silence()
    (line,) = made.log
    assert "0.6 %" in line and "feedback_scale" in line and "feedback_baseline" in line


def test_both_passes_of_a_recomputed_teacher_have_the_trainers_autocast() -> None:
    made = trainer()
    made.is_ddp, made.device = False, torch.device("cpu")
    assert made.wrapped(nn.Linear(1, 1), recomputed=True).autocast == made.autocast
