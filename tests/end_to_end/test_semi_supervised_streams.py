"""The two streams as built: batches, cases, and a mirroring that never mixes up the sides in either."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled
from tests.end_to_end.commands import run_function
from tests.end_to_end.tiny import Tiny

RECIPROCAL, TWIN = "nnUNetTrainerReciprocal", "nnUNetTrainerSupervisedTwin"


def _describe(tiny: Tiny, out: Path, trainer_name: str = RECIPROCAL) -> None:
    """Build the trainer as the stock command does and write down what its two streams do."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from nnunetv2.run.run_training import get_trainer_from_args

    from ctnet_nnunet.trainers.lateral_mirroring import LateralMirrorTransform

    cpu = torch.device("cpu")
    trainer = get_trainer_from_args(str(tiny.id), "3d_fullres", 0, trainer_name, tiny.plans, device=cpu)
    trainer.initialize()
    streams, _ = trainer.get_dataloaders()

    def axes(stream: Any) -> dict[str, Any]:
        steps = stream.transforms.transforms
        swap = [step.allowed_axes for step in steps if isinstance(step, LateralMirrorTransform)]
        plain = [step.allowed_axes for step in steps if type(step) is MirrorTransform]
        turned = sum(type(step).__name__ == "Rot90Transform" for step in steps)
        return {"swap": swap, "plain": plain, "turned": turned}

    drawn = {name: batch for name, batch in next(streams).items() if batch is not None}
    found = {name: axes(getattr(streams, name).data_loader) for name in drawn}
    shapes = {name: list(batch["data"].shape) for name, batch in drawn.items()}
    cases = {name: sorted(set(batch["keys"])) for name, batch in drawn.items()}
    validation = trainer.do_split()[1]
    out.write_text(json.dumps({
        **found, "inference": trainer.inference_allowed_mirroring_axes,
        "shapes": shapes, "cases": cases, "validation": validation, "target": "target" in drawn.get("unlabelled", {}),
    }))  # fmt: skip


def described(tiny: Tiny, out: Path, preset: str, **values: int) -> dict[str, Any]:
    block = tiny.read_plans()["configurations"][tiny.configuration]["ctnet"]
    tiny.change_configuration(ctnet={**block, "semi_supervised": {"preset": preset, **values}})
    run_function(tiny.env, functools.partial(_describe, tiny, out)).succeeded()
    return json.loads(out.read_text())


@pytest.mark.parametrize(("preset", "plain"), [("nnunet", [0, 1]), ("rlsss", [1])])
def test_both_streams_mirror_the_left_right_axis_with_a_swap(
    copy_of_planned: Tiny, tmp_path: Path, preset: str, plain: list[int]
) -> None:
    found = described(copy_of_planned, tmp_path / "found.json", preset)
    for stream in ("labelled", "unlabelled"):
        assert found[stream] == {"swap": [[2]], "plain": [plain], "turned": 0}, stream
    assert found["inference"] == plain  # test-time augmentation mirrors what training has


def test_an_unlabelled_scan_in_another_orientation_turns_mirroring_off(copy_of_planned: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    (file, *_) = sorted((tiny.raw / "imagesUn").glob("*.nii.gz"))
    image = sitk.ReadImage(str(file))
    image.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(file))
    shutil.rmtree(tiny.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    preprocess_unlabeled(tiny.id, tiny.configuration, tiny.plans, processes=0)
    found = described(tiny, tmp_path / "found.json", "nnunet")
    for stream in ("labelled", "unlabelled"):
        assert found[stream] == {"swap": [], "plain": [], "turned": 0}
    assert found["inference"] is None
    # The twin never reads the scan, and would be no twin if it mirrored.
    run_function(tiny.env, functools.partial(_describe, tiny, tmp_path / "twin.json", TWIN)).succeeded()
    twin = json.loads((tmp_path / "twin.json").read_text())
    assert (twin["labelled"], twin["inference"]) == (found["labelled"], None) and "unlabelled" not in twin


def test_batches_are_as_large_as_wanted_and_hold_no_validation_case(copy_of_planned: Tiny, tmp_path: Path) -> None:
    found = described(copy_of_planned, tmp_path / "found.json", "rlsss", batch_labelled=8, batch_unlabelled=5)
    assert found["shapes"] == {"labelled": [8, 1, 16, 24, 24], "unlabelled": [5, 1, 16, 24, 24]}
    labelled = {f"tr_00{index}" for index in range(5)} - set(found["validation"])
    assert set(found["cases"]["unlabelled"]) <= {"un_000", "un_001", *labelled}
    assert all(case.startswith("tr_") for case in found["cases"]["labelled"])
    assert not set(found["cases"]["labelled"]) & set(found["validation"])
    assert not found["target"]
