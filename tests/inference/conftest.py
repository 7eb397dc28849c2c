"""A model folder as a training leaves it, with random weights: what is tested here needs no training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import write_checkpoint
from tests.conftest import NnunetEnv
from tests.end_to_end.tiny import Tiny, prepare


@pytest.fixture(scope="session")
def tiny_for_models(nnunet_env: NnunetEnv) -> Tiny:
    return prepare(nnunet_env, 730, "Models", labelled=5, unlabelled=0)


@pytest.fixture
def model_folder(tiny_for_models: Tiny, tmp_path: Path) -> Path:
    """Two folds of a CTNet."""
    folder = tmp_path / "nnUNetTrainerCTNet__CTNetPlans__3d_fullres"
    plans = tiny_for_models.read_plans()
    for fold in range(2):
        torch.manual_seed(fold)
        network = network_from_plan(plans["configurations"]["3d_fullres"]["architecture"], 1, 3, True)
        (folder / f"fold_{fold}").mkdir(parents=True)
        content = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainerCTNet",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (1,),
        }
        write_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(tiny_for_models.raw / "dataset.json", folder / "dataset.json")
    return folder
