"""What a bad file is, and the good scan and model that it is made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.inference.export import export_model
from tests.architectures.plan_table import Plan, halvings
from tests.synthetic import write_image

CONFIGURATION = "3d_fullres"
TINY = Plan("tiny", (8, 8, 8), halvings(3, 1), 1, (4, 4, 4), classes=2)
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class Good:
    """A scan, a model's folder, the same as a bundle, and a series' image: what is fine before it is spoilt."""

    folder: Path

    @property
    def scan(self) -> Path:
        return self.folder / "scan.nii.gz"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def bundle(self) -> Path:
        return self.folder / "model.ctnet"


@dataclass(frozen=True)
class Bad:
    """``make`` writes the file into a folder of its own and returns the words of the command that must refuse it."""

    name: str
    what: str
    make: Callable[[Path, Good], list[str]]


def make_good(folder: Path) -> Good:
    """A scan of noise and a U-Net of two stages with random weights."""
    good = Good(folder)
    write_image(good.scan, np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32))
    (good.model / "fold_0").mkdir(parents=True)
    (good.model / "plans.json").write_text(json.dumps(plans()))
    dataset = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "blob": 1}, "file_ending": ".nii.gz"}
    (good.model / "dataset.json").write_text(json.dumps(dataset))
    torch.save(checkpoint(), good.model / "fold_0" / "checkpoint_final.pth")
    export_model(good.model, good.bundle)
    return good


def plans() -> dict[str, Any]:
    """Of :data:`TINY`, as nnU-Net's planner writes them."""
    resampling = {
        key: value
        for part in ("data", "seg", "probabilities")
        for key, value in (
            (f"resampling_fn_{part}", "resample_data_or_seg_to_shape"),
            (f"resampling_fn_{part}_kwargs", RESAMPLING),
        )
    }
    configuration = {
        "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": list(TINY.patch),
        "spacing": [1.0, 1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "architecture": TINY.unet_block(), **resampling,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Tiny", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {CONFIGURATION: configuration},
    }  # fmt: skip


def checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    network = network_from_plan(TINY.unet_block(), 1, 2, True)
    return {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION}, "inference_allowed_mirroring_axes": None,
    }  # fmt: skip


def predict(folder: Path, scan: Path, model: Path) -> list[str]:
    return ["predict", "-i", str(scan), "-o", str(folder / "out"), "-m", str(model)]


def with_model(folder: Path, good: Good, change: Callable[[Path], object]) -> list[str]:
    """Predict the good scan with a changed copy of the good model."""
    model = folder / "model"
    shutil.copytree(good.model, model)
    change(model)
    return predict(folder, good.scan, model)


def series_image() -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 500, (6, 9, 7)).astype(np.int16))
    image.SetSpacing((1.0, 1.5, 2.0))
    return image
