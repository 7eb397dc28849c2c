"""Peak memory of ``ctnet predict`` on a large scan with many classes, by a tiny network with random weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.predict import peak_of_child
from ctnet_nnunet.benchmark.steps import Workload
from ctnet_nnunet.checkpoints import write_checkpoint
from ctnet_nnunet.process import find_program

PATCH = (64, 64, 64)
FOLDS = 2


@dataclass(frozen=True)
class MemoryRow:
    """A scan's size in voxels, its classes with background, whether it was resampled, and the peak in bytes."""

    size: tuple[int, ...]
    classes: int
    resampled: bool
    peak: int


def measure_memory(size: Sequence[int], classes: int, resampled: bool) -> MemoryRow:
    """Predict a generated scan of ``size`` voxels (x, y, z) of 1 mm; ``resampled``: the plan has 1.1 mm."""
    with tempfile.TemporaryDirectory(prefix="ctnet-benchmark-") as temporary:
        root = Path(temporary)
        _write_model(root / "model", classes, 1.1 if resampled else 1.0)
        noise = np.random.default_rng(0).normal(100, 20, tuple(size)[::-1]).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(noise), str(root / "scan_0000.nii.gz"), True)
        del noise
        command = [find_program("ctnet"), "predict", "-i", str(root / "scan_0000.nii.gz"), "-o", str(root / "out")]
        peak = peak_of_child([*command, "-m", str(root / "model"), "--speed", "fast"], root)
    return MemoryRow(tuple(size), classes, resampled, peak)


def _write_model(folder: Path, classes: int, spacing: float) -> None:
    workload = Workload(PATCH, 2, 4, 1, classes)
    architecture = workload.architecture()
    (folder).mkdir()
    labels = {"background": 0, **{f"structure {label}": label for label in range(1, classes)}}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    (folder / "plans.json").write_text(json.dumps(_plans(architecture, spacing)), encoding="utf-8")
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        network = network_from_plan(architecture, 1, classes, True)
        (folder / f"fold_{fold}").mkdir()
        content = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        write_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")


def _plans(architecture: dict[str, Any], spacing: float) -> dict[str, Any]:
    data = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    resample = "resample_data_or_seg_to_shape"
    statistics = {"max": 200.0, "mean": 100.0, "median": 100.0, "min": 0.0, "percentile_00_5": 50.0,
                  "percentile_99_5": 150.0, "std": 20.0}  # fmt: skip
    configuration = {
        "data_identifier": "benchmark_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PATCH),
        "median_image_size_in_voxels": [float(size) for size in PATCH],
        "spacing": [spacing] * 3,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_seg": resample,
        "resampling_fn_probabilities": resample,
        "resampling_fn_data_kwargs": data,
        "resampling_fn_seg_kwargs": {**data, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**data, "order": 1},
        "architecture": architecture,
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(PATCH),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics},
    }
