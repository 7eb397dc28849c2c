"""A teacher's checkpoint is of the same plan and dataset, not only of the same shapes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctnet_nnunet.checkpoints import write_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.teacher_weights import kind_of, teacher_weights

BLOCK = {"spacing": [1.0, 0.8, 0.8], "normalization_schemes": ["ZScoreNormalization"], "architecture": {}}
PLANS: dict[str, Any] = {
    "plans_name": "P", "transpose_forward": [0, 1, 2],
    "configurations": {"3d_fullres": BLOCK, "low": {"inherits_from": "3d_fullres", "spacing": [2.0, 1.6, 1.6]}},
}  # fmt: skip
DATASET: dict[str, Any] = {"labels": {"background": 0, "liver": 1}}


def arguments(configuration: str = "3d_fullres") -> dict[str, Any]:
    return copy.deepcopy({"plans": PLANS, "configuration": configuration, "dataset_json": DATASET, "fold": 0})


def load(tmp_path: Path, **more: Any) -> dict[str, torch.Tensor]:
    network, file = nn.Linear(2, 2), tmp_path / "checkpoint_final.pth"
    write_checkpoint({"network_weights": network.state_dict(), **more}, file)
    return teacher_weights(file, nn.Linear(2, 2).state_dict(), kind_of(PLANS, BLOCK, DATASET))


def test_the_same_plan_and_files_that_do_not_say_are_taken(tmp_path: Path) -> None:
    for more in ({"init_args": arguments()}, {"init_args": None}, {}):
        assert set(load(tmp_path, **more)) == {"weight", "bias"}


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
