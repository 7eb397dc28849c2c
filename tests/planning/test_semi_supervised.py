"""The semi_supervised table: presets, whose schedule speaks, and refusals by name."""

from __future__ import annotations

from typing import Any

import pytest

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.changes import sort_changes
from ctnet_nnunet.planning.options import Schedule, preset_block, read_options
from ctnet_nnunet.planning.semi_supervised import SCHEDULE_KEYS, SEMI_SUPERVISED_PRESETS, SemiSupervised
from ctnet_nnunet.semi_supervised.reciprocal import ReciprocalOptions


def table(**values: Any) -> Any:
    return read_options({"semi_supervised": values}).semi_supervised


def test_the_published_method() -> None:
    published = table(preset="rlsss")
    assert published.reciprocal() == ReciprocalOptions()
    wanted = {"loss": "ce", "deep_supervision": False, "augmentation": "rlsss", "optimizer": "sgd", "momentum": 0.9}
    assert {key: getattr(published, key) for key in wanted} == wanted
    schedule = read_options({"semi_supervised": {"preset": "rlsss"}}).schedule("semi_supervised")
    assert (schedule.learning_rate, schedule.weight_decay, schedule.warmup_epochs) == (0.01, 1e-4, 0)
    assert schedule.epochs == preset_block("m")["epochs"]


def test_the_default_trains_as_the_supervised_trainer_does() -> None:
    options = read_options({"epochs": 40})
    assert options.schedule("semi_supervised") == options.schedule("supervised")
    assert options.semi_supervised == table(preset="nnunet")
    assert (options.semi_supervised.loss, options.semi_supervised.deep_supervision) == ("dice_ce", True)
    assert options.semi_supervised.feedback == "finite_difference"


@pytest.mark.parametrize("preset", SEMI_SUPERVISED_PRESETS)
def test_a_key_of_ones_own_wins_over_the_presets_and_over_the_shared_one(preset: str) -> None:
    options = read_options(
        {"epochs": 9, "learning_rate": 0.5, "semi_supervised": {"preset": preset, "learning_rate": 0.2, "loss": "ce"}}
    )
    schedule = options.schedule("semi_supervised")
    assert (schedule.epochs, schedule.learning_rate, options.semi_supervised.loss) == (9, 0.2, "ce")
    assert options.schedule("supervised").learning_rate == 0.5


def test_every_schedule_key_but_the_batch_size_can_be_set_for_these_trainers_alone() -> None:
    assert set(SCHEDULE_KEYS) == set(Schedule.model_fields) - {"batch_size"}
    assert set(SCHEDULE_KEYS) <= set(SemiSupervised.model_fields)


def test_reading_a_table_again_changes_nothing() -> None:
    for preset in SEMI_SUPERVISED_PRESETS:
        once = read_options({"semi_supervised": {"preset": preset, "feedback_scale": 3.0}})
        assert read_options(once.model_dump()) == once


def test_ctnet_plan_reaches_it_by_dotted_names() -> None:
    changes = sort_changes({"semi_supervised.preset": "rlsss", "semi_supervised.epochs": 4})
    assert changes.options == {"semi_supervised": {"preset": "rlsss", "epochs": 4}}


@pytest.mark.parametrize(("values", "words"), [
    ({"loss": "dice"}, "semi_supervised.loss='dice'"), ({"preset": "mpl"}, "semi_supervised.preset='mpl'"),
    ({"preset": ["nnunet"]}, "semi_supervised.preset"),
    ({"feedback_scale": -1.0}, "semi_supervised.feedback_scale"), ({"ema_decay": 2.0}, "semi_supervised.ema_decay"),
    ({"feedback_baseline": 1.0}, "semi_supervised.feedback_baseline"), ({"epochs": 0}, "semi_supervised.epochs"),
    ({"teacher_pretraining": 1.0}, "semi_supervised.teacher_pretraining"),
    ({"transductive": 1}, "semi_supervised.transductive"), ({"batch_labelled": True}, "semi_supervised.batch_labelled"),
    ({"momentum": 1.0}, "semi_supervised.momentum"), ({"pseudo_labels": "soft"}, "semi_supervised.pseudo_labels"),
])  # fmt: skip
def test_an_ill_typed_value_is_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        table(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_named_and_the_valid_ones_are_listed() -> None:
    with pytest.raises(PlanError, match=r"semi_supervised\.feedbak; valid are .*semi_supervised\.feedback_scale"):
        table(feedbak=1)
    with pytest.raises(PlanError, match="semi_supervised=3"):
        read_options({"semi_supervised": 3})
