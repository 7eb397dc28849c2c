"""Pretrain, fine-tune and predict once for every kind of dataset and plan that a user may bring."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_function, run_warm
from tests.end_to_end.tiny import PRETRAINER, TRAINER, Tiny, prepare
from tests.synthetic import make_dataset, plan_and_preprocess

BLOCK = {
    "preset": "s", "epochs": 2, "iterations": 2, "val_iterations": 1, "mask_block": 1,
    "transformer": {"embed_dim": 24, "depth": 1, "heads": 2},
}  # fmt: skip


def whole_way(tiny: Tiny, out: Path) -> dict[str, torch.Tensor]:
    """Pretrain, fine-tune fold 0 with the result, predict; returns the fine-tuned checkpoint."""
    run_warm(tiny.env, *tiny.train("all", PRETRAINER)).succeeded()
    loaded = run_warm(tiny.env, *tiny.train(0, TRAINER, "-pretrained_weights", tiny.pretrained())).succeeded()
    assert "tensors from" in loaded.stdout
    run_warm(tiny.env, *tiny.predict(tiny.raw / "imagesTs", out, [0])).succeeded()
    return torch.load(tiny.fold(0) / "checkpoint_final.pth", weights_only=True)


def check_prediction(tiny: Tiny, out: Path, labels: set[int]) -> None:
    (scan, *_) = sorted((tiny.raw / "imagesTs").glob("*_0000.nii.gz"))
    image, prediction = sitk.ReadImage(str(scan)), sitk.ReadImage(str(out / scan.name.replace("_0000", "")))
    assert prediction.GetSize() == image.GetSize()
    assert prediction.GetSpacing() == pytest.approx(image.GetSpacing())
    assert set(np.unique(sitk.GetArrayFromImage(prediction)).tolist()) <= labels


@pytest.mark.parametrize(
    ("number", "name", "options", "labels"),
    [
        (620, "TwoChannels", {"channels": 2}, {0, 1, 2}),
        (621, "Ignore", {"ignore": True}, {0, 1, 2}),
        (622, "Regions", {"regions": True, "labels": ("core", "shell", "rim")}, {0, 1, 2, 3}),
        (623, "RegionsIgnore", {"regions": True, "ignore": True, "labels": ("core", "rim")}, {0, 1, 2}),
        (624, "Slices", {"two_d": True, "configuration": "2d", "patch_size": (24, 24)}, {0, 1, 2}),
        (
            625,
            "Anisotropic",
            {"spacing": (4.0, 1.0, 1.0), "shape": (10, 28, 24), "patch_size": (8, 24, 24)},
            {0, 1, 2},
        ),
    ],
)
def test_the_whole_way(
    nnunet_env: NnunetEnv, tmp_path: Path, number: int, name: str, options: dict[str, Any], labels: set[int]
) -> None:
    tiny = prepare(nnunet_env, number, name, **options)
    checkpoint = whole_way(tiny, tmp_path)
    check_prediction(tiny, tmp_path, labels)
    if "channels" in options:
        first = next(key for key in checkpoint["network_weights"] if key.endswith("weight"))
        assert checkpoint["network_weights"][first].shape[1] == 2
    if name == "Anisotropic":
        strides = tiny.read_plans()["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
        assert [1, 2, 2] in [list(stride) for stride in strides]


def test_a_volume_in_2d(nnunet_env: NnunetEnv, tmp_path: Path) -> None:
    tiny = prepare(nnunet_env, 626, "VolumesAsSlices", configuration="2d", patch_size=(24, 24), unlabelled=2)
    whole_way(tiny, tmp_path)
    check_prediction(tiny, tmp_path, {0, 1, 2})


def test_a_residual_encoder_plan_is_translated(nnunet_env: NnunetEnv, tmp_path: Path) -> None:
    tiny = Tiny(nnunet_env, 627, "ResEnc", plans="nnUNetResEncUNetMPlans")
    make_dataset(nnunet_env.raw, tiny.id, tiny.name, 5, 2, n_test=1)
    plan_and_preprocess(tiny.id, ["3d_fullres"], planner="nnUNetPlannerResEncM")
    tiny.change_configuration(ctnet=BLOCK, patch_size=[16, 24, 24])
    preprocess_unlabeled(tiny.id, "3d_fullres", tiny.plans, processes=0)
    checkpoint = whole_way(tiny, tmp_path)
    check_prediction(tiny, tmp_path, {0, 1, 2})
    keys = checkpoint["network_weights"]
    assert any(key.startswith("transformer.") for key in keys)
    assert any(".skip." in key or ".conv1." in key for key in keys)  # residual blocks


def test_pretraining_never_opens_a_validation_case(copy_of_planned: Tiny) -> None:
    """The files of fold 0's validation case are garbage: fold 0 pretrains, a fold that trains on the case cannot."""
    tiny = copy_of_planned
    cases = sorted(file.stem for file in (tiny.preprocessed / "nnUNetPlans_3d_fullres").glob("tr_???.b2nd"))
    splits = [{"train": [case for case in cases if case != held], "val": [held]} for held in cases[:2]]
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for file in (tiny.preprocessed / "nnUNetPlans_3d_fullres").glob(f"{cases[0]}*"):
        file.write_bytes(b"not a case")
    done = run_warm(tiny.env, *tiny.train(0, PRETRAINER)).succeeded()
    assert "(2 unlabelled, 4 images of fold 0)" in done.stdout
    assert run_warm(tiny.env, *tiny.train(1, PRETRAINER)).status != 0


def test_pretraining_without_unlabelled_scans(nnunet_env: NnunetEnv) -> None:
    tiny = prepare(nnunet_env, 628, "NoUnlabelled", unlabelled=0)
    done = run_warm(tiny.env, *tiny.train(0, PRETRAINER)).succeeded()
    assert "(0 unlabelled, 4 images of fold 0)" in done.stdout
    assert tiny.pretrained(0).is_file()


def test_the_official_route_with_two_datasets(nnunet_env: NnunetEnv, tmp_path: Path) -> None:
    """Pretrain in dataset A with the plans of dataset B, fine-tune in B (nnU-Net's documented way)."""
    target = prepare(nnunet_env, 629, "Target", unlabelled=0)
    source = Tiny(nnunet_env, 630, "Source", plans="TargetPlans")
    make_dataset(nnunet_env.raw, source.id, source.name, 5, 0, labels=("something", "else", "entirely"), seed=9)
    run_warm(nnunet_env, "nnUNetv2_extract_fingerprint", "-d", source.id, "-np", 1).succeeded()
    moved = ("-s", target.id, "-t", source.id, "-sp", target.plans, "-tp", source.plans)
    run_warm(nnunet_env, "nnUNetv2_move_plans_between_datasets", *moved).succeeded()
    # nnUNetv2_preprocess 2.8.1 reads dataset.json where only planning would have put it.
    shutil.copy(source.raw / "dataset.json", source.preprocessed)
    preprocess = ("nnUNetv2_preprocess", "-d", source.id, "-plans_name", source.plans, "-c", "3d_fullres", "-np", 1)
    run_warm(nnunet_env, *preprocess).succeeded()
    run_warm(nnunet_env, *source.train("all", PRETRAINER)).succeeded()
    loaded = run_warm(nnunet_env, *target.train(0, TRAINER, "-pretrained_weights", source.pretrained())).succeeded()
    assert str(source.pretrained()) in loaded.stdout
    run_warm(nnunet_env, *target.predict(target.raw / "imagesTs", tmp_path, [0])).succeeded()
    check_prediction(target, tmp_path, {0, 1, 2})


def test_stock_trainer_trains_and_predicts_a_ctnet_plan(planned_tiny: Tiny, tmp_path: Path) -> None:
    run_function(planned_tiny.env, functools.partial(_stock_training, str(planned_tiny.id))).succeeded()
    file = planned_tiny.fold(0, "nnUNetTrainer") / "checkpoint_final.pth"
    assert torch.load(file, weights_only=False)["trainer_name"] == "nnUNetTrainer"
    words = planned_tiny.predict(planned_tiny.raw / "imagesTs", tmp_path, [0], "nnUNetTrainer")
    run_warm(planned_tiny.env, *words).succeeded()
    check_prediction(planned_tiny, tmp_path, {0, 1, 2})


def _stock_training(dataset: str) -> None:
    """nnU-Net's own trainer with two iterations; its shortest command would run 250."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", 0, "nnUNetTrainer", "CTNetPlans", device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    trainer.perform_actual_validation()
    assert type(trainer.network).__name__ == "CTNet"
    assert any(HEADS in key for key in trainer.network.state_dict())
