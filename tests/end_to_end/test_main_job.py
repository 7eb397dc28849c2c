"""The main job by real commands in real processes: what each promise of the first release comes down to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.trainers.reference import keep_reference
from tests.end_to_end.commands import run_warm
from tests.end_to_end.conftest import MainJob
from tests.end_to_end.tiny import PRETRAINER


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["network_weights"]


def checkpoints(job: MainJob) -> list[Path]:
    found = sorted((job.tiny.env.results / job.tiny.dataset).rglob("*.pth"))
    assert {file.name for file in found} == {"checkpoint_best.pth", "checkpoint_final.pth"}
    return [*found, job.killed_at_start]


def test_predictions_lie_on_the_grid_of_their_scans(main_job: MainJob) -> None:
    scans = sorted((main_job.tiny.raw / "imagesTs").glob("*.nii.gz"))
    assert len(scans) == 2
    for scan in scans:
        predicted = main_job.predictions / scan.name.replace("_0000", "")
        image, prediction = sitk.ReadImage(str(scan)), sitk.ReadImage(str(predicted))
        assert prediction.GetSize() == image.GetSize()
        assert prediction.GetSpacing() == pytest.approx(image.GetSpacing())
        assert prediction.GetOrigin() == pytest.approx(image.GetOrigin())
        assert prediction.GetDirection() == pytest.approx(image.GetDirection())
        assert set(np.unique(sitk.GetArrayFromImage(prediction))) <= {0, 1, 2}


def test_fine_tuning_starts_from_the_pretrained_network_to_the_bit(main_job: MainJob) -> None:
    pretrained, start = weights(main_job.tiny.pretrained()), weights(main_job.killed_at_start)
    heads = {key for key in start if HEADS in key}
    assert heads
    assert pretrained.keys() == start.keys()
    for key in start.keys() - heads:
        assert torch.equal(start[key], pretrained[key]), key
    assert any(not torch.equal(start[key], pretrained[key]) for key in heads)
    for part in ("encoder.", "decoder.", "transformer."):
        assert any(key.startswith(part) for key in start.keys() - heads), part
    # It is a pretrained network: the pretext tasks have changed the encoder, and fine-tuning changes it again.
    final = weights(main_job.tiny.fold(0) / "checkpoint_final.pth")
    assert any(not torch.equal(final[key], pretrained[key]) for key in start.keys() - heads)


def test_checkpoints_are_cpu_tensors_and_plain_types(main_job: MainJob) -> None:
    for file in checkpoints(main_job):
        content = torch.load(file, weights_only=True)  # no map_location: a CUDA tensor would fail or be found below
        found = list(tensors_in(content))
        assert found
        assert {tensor.device.type for tensor in found} == {"cpu"}, file


def test_the_interrupted_fold_was_finished_with_one_log_entry_an_epoch(main_job: MainJob) -> None:
    killed = torch.load(main_job.killed_at_start, weights_only=True)
    final = torch.load(main_job.tiny.fold(1) / "checkpoint_final.pth", weights_only=True)
    assert (killed["current_epoch"], final["current_epoch"]) == (0, 2)
    assert {key: len(values) for key, values in final["logging"].items() if values} == dict.fromkeys(
        ("mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "train_losses", "val_losses", "lrs",
         "epoch_start_timestamps", "epoch_end_timestamps"), 2,
    )  # fmt: skip


def test_every_fold_was_validated(main_job: MainJob) -> None:
    for fold in (0, 1):
        split = json.loads((main_job.tiny.preprocessed / "splits_final.json").read_text())[fold]
        folder = main_job.tiny.fold(fold) / "validation"
        assert {file.name for file in folder.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in split["val"]}
        assert "foreground_mean" in json.loads((folder / "summary.json").read_text())


def test_the_training_cases_were_measured_behind_the_first_fold(main_job: MainJob) -> None:
    model = main_job.tiny.fold(0).parent
    reference = json.loads((model / "reference_volumes.json").read_text())
    assert reference["cases"] == 5 and set(reference["volumes_ml"]) == {"left blob", "right blob"}
    assert "measured 5 training cases for ctnet predict" in main_job.finished["fold 0"].stdout
    assert not (main_job.tiny.pretrained().parent.parent / "reference_volumes.json").exists()
    assert "were not measured" in keep_reference(model.parent, main_job.tiny.preprocessed / "nowhere")


def test_pretraining_used_all_scans_and_says_how_to_go_on(main_job: MainJob) -> None:
    printed = main_job.finished["pretrain"].stdout
    assert "pretraining on 8 scans (3 unlabelled, 5 images of fold all)" in printed
    for metric in ("rotation/loss", "rotation/accuracy", "masked_features/loss", "masked_features/token_std"):
        assert metric in printed
    assert f"-pretrained_weights {main_job.tiny.pretrained()}" in printed
    assert not (main_job.tiny.fold("all", PRETRAINER) / "validation").exists()


def test_the_plan_is_on_stock_preprocessed_data(main_job: MainJob) -> None:
    assert "uses the data that nnUNetv2_plan_and_preprocess made" in main_job.finished["plan"].stdout
    folders = {path.name for path in main_job.tiny.preprocessed.iterdir() if path.is_dir()}
    assert folders == {"gt_segmentations", "nnUNetPlans_3d_fullres", "nnUNetPlans_3d_fullres_unlabeled"}


def test_the_log_says_what_was_loaded(main_job: MainJob) -> None:
    assert "tensors from" in main_job.finished["fold 0"].stdout
    assert "of the heads stay new" in main_job.finished["fold 0"].stdout


def test_ctnet_predict_gives_the_labels_of_nnunetv2_predict(main_job: MainJob, tmp_path: Path) -> None:
    model = main_job.tiny.fold(0).parent
    scans, out = main_job.tiny.raw / "imagesTs", tmp_path / "out"
    command = ("ctnet", "predict", "-i", scans, "-o", out, "-m", model, "-f", 0, 1, "--speed", "best", "--report")
    run_warm(main_job.tiny.env, *command).succeeded()
    stock = sorted(main_job.predictions.glob("*.nii.gz"))
    assert len(stock) == 2
    for file in stock:
        expected, found = sitk.ReadImage(str(file)), sitk.ReadImage(str(out / file.name))
        assert found.GetDirection() == expected.GetDirection()
        assert found.GetOrigin() == expected.GetOrigin()
        differing = sitk.GetArrayFromImage(expected) != sitk.GetArrayFromImage(found)
        assert differing.mean() < 1e-4, file.name
    assert (out / "report.html").is_file()
