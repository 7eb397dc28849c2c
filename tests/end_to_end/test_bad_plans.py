"""Plans that cannot be trained, and a device that is not there, under the stock commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.end_to_end.commands import run, run_warm
from tests.end_to_end.refusals import check_refused
from tests.end_to_end.tiny import Tiny

Change = Callable[[dict[str, Any]], Any]


def edit(tiny: Tiny, change: Change) -> None:
    """Edit the configuration's block of the plans file by hand."""
    plans = tiny.read_plans()
    change(plans["configurations"][tiny.configuration])
    tiny.plans_file.write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["architecture"]["arch_kwargs"].pop("strides"), ["no strides", "ctnet plan"]),
        (lambda c: c["architecture"].update(network_class_name="torch.hub.load"), ["'torch.hub.load' is not"]),
        (lambda c: c.update(patch_size=[16, 24, 23]), ["patch_size [16, 24, 23] is not divisible", "[4, 4, 4]"]),
        (lambda c: c["ctnet"].update(epochss=3), ["unknown ctnet option epochss", "epochs", "save_minutes"]),
        (lambda c: c["ctnet"].update(epochs="many"), ["epochs='many'"]),
        (lambda c: c["ctnet"]["transformer"].update(depth=2), ["ctnet.transformer", "differ", "ctnet plan --set"]),
    ],
    ids=["no strides", "class", "patch", "unknown key", "ill-typed", "transformer"],
)
def test_plans(copy_of_planned: Tiny, change: Change, words: list[str]) -> None:
    edit(copy_of_planned, change)
    check_refused(run_warm(copy_of_planned.env, *copy_of_planned.train(0)), copy_of_planned, *words)


def test_a_configuration_that_the_plan_lacks(copy_of_planned: Tiny) -> None:
    words = ["3d_lowres" if word == "3d_fullres" else word for word in copy_of_planned.train(0)]
    check_refused(run_warm(copy_of_planned.env, *words), copy_of_planned, "no configuration '3d_lowres'", "3d_fullres")


@pytest.mark.parametrize("trainer", ["nnUNetTrainerVolF", "nnUNetTrainerReciprocal"])
def test_a_cascades_second_stage_has_no_labels_to_start_from(copy_of_planned: Tiny, trainer: str) -> None:
    plans = copy_of_planned.read_plans()
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    copy_of_planned.plans_file.write_text(json.dumps(plans))
    words = [word.replace("3d_fullres", "3d_cascade_fullres") for word in copy_of_planned.train("all", trainer)]
    check_refused(run_warm(copy_of_planned.env, *words), copy_of_planned, "3d_cascade_fullres", "second stage")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(copy_of_planned: Tiny) -> None:
    words = ["cuda" if word == "cpu" else word for word in copy_of_planned.train(0)]
    check_refused(run(copy_of_planned.env, *words), copy_of_planned, "-device cuda", "-device cpu", "ctnet doctor")
