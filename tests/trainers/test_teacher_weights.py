"""A teacher's checkpoint is of the same plan and dataset, not only of the same shapes."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctnet_nnunet.checkpoints import write_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.teacher_weights import Learner, kind_of, teacher_weights

BLOCK = {"spacing": [1.0, 0.8, 0.8], "normalization_schemes": ["ZScoreNormalization"], "architecture": {}}
PLANS: dict[str, Any] = {
    "plans_name": "P", "dataset_name": "Dataset501_X", "transpose_forward": [0, 1, 2],
    "configurations": {"3d_fullres": BLOCK, "low": {"inherits_from": "3d_fullres", "spacing": [2.0, 1.6, 1.6]}},
}  # fmt: skip
DATASET: dict[str, Any] = {"labels": {"background": 0, "liver": 1}}
FOLD_0 = Learner("Dataset501_X", 0, frozenset({"a", "b", "c"}), hides_labels=False)


def arguments(configuration: str = "3d_fullres") -> dict[str, Any]:
    return copy.deepcopy({"plans": PLANS, "configuration": configuration, "dataset_json": DATASET, "fold": 0})


def load(tmp_path: Path, learner: Learner = FOLD_0, **more: Any) -> dict[str, torch.Tensor]:
    network, file = nn.Linear(2, 2), tmp_path / "checkpoint_final.pth"
    write_checkpoint({"network_weights": network.state_dict(), **more}, file)
    return teacher_weights(file, nn.Linear(2, 2).state_dict(), kind_of(PLANS, BLOCK, DATASET), learner)


def test_the_same_plan_and_files_that_do_not_say_are_taken(tmp_path: Path) -> None:
    for more in ({"init_args": arguments()}, {"init_args": None}, {}):
        assert set(load(tmp_path, **more)) == {"weight", "bias"}


def test_labels_of_another_fold_or_hidden_ones_are_not_passed_on(tmp_path: Path) -> None:
    of_fold_0: dict[str, Any] = {"init_args": arguments(), "trainer_name": "nnUNetTrainerCTNet"}
    with pytest.raises(CheckpointError, match=r"trained on fold 0, so it has seen labels of fold 3's .*write \{fold\}"):
        load(tmp_path, replace(FOLD_0, fold=3), **of_fold_0)
    for learner in (replace(FOLD_0, fold="all"), replace(FOLD_0, dataset="Dataset502_Y", fold=3)):
        load(tmp_path, learner, **of_fold_0)
    hiding = replace(FOLD_0, hides_labels=True)
    with pytest.raises(CheckpointError, match=r"does not say which cases.*-tr nnUNetTrainerSupervisedTwin"):
        load(tmp_path, hiding, **of_fold_0)
    load(tmp_path, hiding, **of_fold_0, ctnet={"labelled_cases": ["a", "c"]})
    for learner in (hiding, FOLD_0, replace(FOLD_0, fold="all")):
        with pytest.raises(CheckpointError, match="labels of d and 1 more, which this training"):
            load(tmp_path, learner, **of_fold_0, ctnet={"labelled_cases": ["a", "e", "d"]})


def test_a_pretraining_and_a_failed_training_are_no_teachers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a pretraining's, .*teacher_from_pretrained=true"):
        load(tmp_path, ctnet={"pretext_state": {}})
    broken = {"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="weight holds numbers that are not finite"):
        load(tmp_path, network_weights=broken)


def change(path: str, value: Any) -> dict[str, Any]:
    changed = arguments()
    *way, last = path.split("/")
    inner = changed
    for key in way:
        inner = inner[key]
    inner[last] = value
    return changed


BLOCK_PATH = "plans/configurations/3d_fullres"


@pytest.mark.parametrize(("changed", "words"), [
    (change("dataset_json/labels", {"background": 0, "tumour": 1}), "labels {'background': 0, 'tumour': 1}"),
    (change("plans/transpose_forward", [2, 0, 1]), "transpose_forward [2, 0, 1], this plan has [0, 1, 2]"),
    (change(f"{BLOCK_PATH}/spacing", [5.0, 1.0, 1.0]), "spacing [5.0, 1.0, 1.0], this plan has [1.0, 0.8, 0.8]"),
    (change(f"{BLOCK_PATH}/normalization_schemes", ["CTNormalization"]), "normalization_schemes ['CTNormalization']"),
    (arguments("low"), "spacing [2.0, 1.6, 1.6]"),
    (arguments("2d"), "cannot be read"), ({"plans": PLANS}, "cannot be read"), (["x"], "cannot be read"),
])  # fmt: skip
def test_the_first_difference_is_named(changed: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        load(tmp_path, init_args=changed)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_regions_have_an_order() -> None:
    def kind(labels: dict[str, Any]) -> Any:
        return kind_of(PLANS, BLOCK, {"labels": labels})

    assert kind({"a": [1, 2], "b": 2}) == kind({"a": (1, 2), "b": 2})
    assert kind({"a": [1, 2], "b": 2}) != kind({"b": 2, "a": [1, 2]})
    assert kind({"a": 1, "b": 2}) == kind({"b": 2, "a": 1})
