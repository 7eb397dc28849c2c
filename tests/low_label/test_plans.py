"""Arms differ in what their names say and in nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctnet_nnunet.architectures.from_plan import as_ctnet, as_unet, network_from_plan
from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.errors import PlanError, SetupError
from ctnet_nnunet.low_label.arms import ARMS, select
from ctnet_nnunet.low_label.cases import Draw
from ctnet_nnunet.low_label.experiment import Experiment, Settings, open_experiment
from ctnet_nnunet.low_label.plans import arm_plans, check_buildable, options_for_all, preset_of, pretraining_plans
from ctnet_nnunet.planning.options import read_options

UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3, "features_per_stage": [4, 8, 16], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2], "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}  # fmt: skip
CONFIGURATION: dict[str, Any] = {
    "patch_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0], "batch_size": 2, "architecture": UNET,
    "data_identifier": "nnUNetPlans_3d_fullres",
}  # fmt: skip
BASE = {
    "plans_name": "nnUNetPlans", "dataset_name": "Dataset501_X", "transpose_forward": [0, 1, 2],
    "configurations": {"3d_fullres": CONFIGURATION, "2d": {}},
}  # fmt: skip
SETTINGS = Settings(
    "Dataset501_X", "3d_fullres", "nnUNetPlans", "0", "s", {}, 1000, 300, 25, 7, ("a", "b", "c"), ("t",)
)
TRANSFORMER = TransformerOptions(embed_dim=24, depth=1, heads=2)


def plans_of(name: str, settings: Settings = SETTINGS, configuration: dict[str, Any] = CONFIGURATION) -> dict[str, Any]:
    return arm_plans(BASE, configuration, settings, ARMS[name])


def block_of(plans: dict[str, Any]) -> dict[str, Any]:
    return plans["configurations"]["3d_fullres"]["ctnet"]


def test_all_arms_share_the_schedule_and_the_patch() -> None:
    reference = read_options(block_of(plans_of("ctnet"))).schedule("supervised")
    assert (reference.epochs, reference.iterations, reference.seed) == (25, 40, 7)
    for name in ARMS:
        plans = plans_of(name)
        assert list(plans["configurations"]) == ["3d_fullres"]
        configuration = plans["configurations"]["3d_fullres"]
        options = read_options(configuration["ctnet"])
        assert options.schedule("supervised") == reference
        assert options.schedule("semi_supervised") == reference
        for key in ("patch_size", "spacing", "batch_size", "data_identifier"):
            assert configuration[key] == CONFIGURATION[key]
    assert len({plans_of(name)["plans_name"] for name in ARMS}) == len(ARMS)


def test_pretraining_has_its_own_length_and_the_arm_s_network() -> None:
    for name, arm in ARMS.items():
        if arm.pretraining is None:
            continue
        plans = pretraining_plans(BASE, CONFIGURATION, SETTINGS, arm.network, arm.pretraining)
        options = read_options(block_of(plans))
        for mode in ("pretrain", "volf", "planes"):
            schedule = options.schedule(mode)
            assert (schedule.epochs, schedule.iterations, schedule.seed) == (25, 12, 7)
        assert {task: weight for task, weight in options.pretext.items() if weight} == dict(arm.pretraining.tasks)
        mine, theirs = plans_of(name)["configurations"]["3d_fullres"], plans["configurations"]["3d_fullres"]
        assert mine["architecture"] == theirs["architecture"]


@pytest.mark.parametrize("base", ["unet", "ctnet"])
def test_networks_are_the_same_from_a_unet_plan_and_from_a_ctnet_plan(base: str) -> None:
    options = read_options({"preset": "s"}).transformer_options()
    architecture = UNET if base == "unet" else as_ctnet(UNET, [16, 16, 16], options)
    configuration = {**CONFIGURATION, "architecture": architecture}
    assert plans_of("unet", configuration=configuration)["configurations"]["3d_fullres"]["architecture"] == UNET
    ctnet = plans_of("ctnet", configuration=configuration)["configurations"]["3d_fullres"]["architecture"]
    assert ctnet == as_ctnet(UNET, [16, 16, 16], options)
    identity = plans_of("ctnet-identity", configuration=configuration)["configurations"]["3d_fullres"]["architecture"]
    assert identity["arch_kwargs"]["transformer"] is None


def test_as_unet_undoes_as_ctnet_and_the_identity_has_the_unets_keys() -> None:
    assert as_unet(as_ctnet(UNET, [16, 16, 16], TRANSFORMER)) == UNET
    assert as_unet(UNET) == UNET
    identity = network_from_plan(as_ctnet(UNET, [16, 16, 16], None), 1, 2, True)
    plain = network_from_plan(UNET, 1, 2, True)
    assert list(identity.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(identity.state_dict())
    image = torch.randn(1, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(plain(image), identity(image), strict=True))


def test_the_base_plan_s_block_stays_where_the_preset_is_its_own() -> None:
    own = {"preset": "s", "learning_rate": 0.002, "epochs": 7, "volf": {"epochs": 9}}
    configuration = {**CONFIGURATION, "ctnet": own}
    options = read_options(block_of(plans_of("ctnet", configuration=configuration)))
    assert (options.learning_rate, options.epochs) == (0.002, 25)
    assert options.schedule("volf").epochs == 25
    other = read_options(block_of(plans_of("ctnet", replace(SETTINGS, preset="m"), configuration)))
    assert other.learning_rate != 0.002
    assert preset_of(configuration, None) == "s"
    assert preset_of(configuration, "l") == "l"


def test_options_for_all_arms() -> None:
    options = options_for_all(["learning_rate=0.001", "pretrain.learning_rate=0.0005", "transformer.depth=2"])
    settings = replace(SETTINGS, options=options)
    for name in ARMS:
        assert read_options(block_of(plans_of(name, settings))).learning_rate == 0.001
    ctnet = read_options(block_of(plans_of("ctnet", settings)))
    assert ctnet.transformer_options() is not None
    assert ctnet.transformer_options().depth == 2  # type: ignore[union-attr]
    assert ctnet.schedule("pretrain").learning_rate == 0.0005
    assert read_options(block_of(plans_of("unet-adamw", settings))).transformer_options() is None


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("epochs=3", "--epochs"), ("pretrain.iterations=3", "--iterations"), ("pretext.rotation=1", "--arms"),
        ("patch_size=[8,8,8]", "base plan"), ("batch_dice=true", "base plan"), ("seed=1", "--seed"),
    ],
)  # fmt: skip
def test_what_the_benchmark_decides_is_refused(assignment: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        options_for_all([assignment])


def test_an_arm_whose_task_the_network_cannot_do_is_refused() -> None:
    arm = ARMS["ctnet+masked"]
    assert arm.pretraining is not None
    settings = replace(SETTINGS, preset="identity")
    plans = pretraining_plans(BASE, CONFIGURATION, settings, arm.network, arm.pretraining)
    with pytest.raises(PlanError, match="masked_features"):
        check_buildable(plans, 1, 3, arm.pretraining)


def test_selection() -> None:
    chosen = select(["ctnet", "unet", "ctnet"], {"mine": "/some/file.pth"})
    assert [arm.name for arm in chosen.arms] == ["ctnet", "unet", "ctnet@mine"]
    assert chosen.arms[-1].plans == "arm_ctnet_at_mine"
    with pytest.raises(SetupError, match="no such arm"):
        select(["ctnett"], {})


def test_an_arm_from_a_checkpoint() -> None:
    files = {"mine": "/1.pth", "same": "/1.pth"}
    chosen = select(["unet", "unet@mine", "unet-reciprocal@same"], files).arms
    assert [(arm.name, arm.network, arm.trainer, arm.weights) for arm in chosen] == [
        ("unet", "unet", "nnUNetTrainerStockSGD", None),
        ("unet@mine", "unet", "nnUNetTrainerStockSGD", "/1.pth"),
        ("unet-reciprocal@same", "unet", "nnUNetTrainerReciprocal", "/1.pth"),
    ]
    assert [arm.name for arm in select(["unet@mine"], files).arms] == ["unet@mine", "ctnet@same"]
    started = arm_plans(BASE, CONFIGURATION, SETTINGS, chosen[-1])
    assert read_options(block_of(started)).semi_supervised.teacher_from_pretrained
    with pytest.raises(SetupError, match=r"unet\+volf@mine: unet\+volf does not start from a checkpoint of yours"):
        select(["unet+volf@mine"], files)
    with pytest.raises(SetupError, match=r"unet@other: no checkpoint of that name; give --checkpoint other=FILE"):
        select(["unet@other"], files)


def test_semi_supervised_arms_hide_the_labels_of_the_pool_s_other_cases(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, SETTINGS, [Draw(1, 1, ("b",)), Draw(2, 1, ("a", "c"))])
    assert experiment.semi_split() == {
        "folds": {"1": {"labeled": ["b"], "unlabeled": ["a", "c"]}, "2": {"labeled": ["a", "c"], "unlabeled": ["b"]}}
    }
    pretrained = read_options(block_of(plans_of("unet-reciprocal+volf"))).semi_supervised
    assert pretrained.teacher_from_pretrained
    assert not read_options(block_of(plans_of("unet-reciprocal"))).semi_supervised.teacher_from_pretrained
    with pytest.raises(PlanError, match=r"semi_supervised\.epochs: give it with --epochs"):
        options_for_all(["semi_supervised.epochs=3"])


def test_how_long_a_pretraining_is_may_be_said_later(tmp_path: Path) -> None:
    unsaid = replace(SETTINGS, pretrain_iterations=None)
    open_experiment(tmp_path, unsaid, {}).save()
    for settings, expected in ((unsaid, None), (SETTINGS, SETTINGS.pretrain_iterations), (unsaid, None)):
        assert open_experiment(tmp_path, settings, {}).settings.pretrain_iterations == expected
    open_experiment(tmp_path, SETTINGS, {}).save()
    assert open_experiment(tmp_path, unsaid, {}).settings == SETTINGS
    with pytest.raises(SetupError, match="another pretrain_iterations"):
        open_experiment(tmp_path, replace(SETTINGS, pretrain_iterations=7777), {})


def test_a_teacher_starts_from_one_file_and_not_from_two() -> None:
    settings = replace(SETTINGS, options={"semi_supervised": {"teacher_weights": "twin/fold_{fold}/checkpoint.pth"}})
    plans_of("unet-reciprocal", settings)
    with pytest.raises(PlanError, match=r"arm unet-reciprocal\+volf: its teacher would start from the pretraining and"):
        plans_of("unet-reciprocal+volf", settings)
