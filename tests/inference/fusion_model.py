"""Model folders of both stages of cross-modality learning with random weights: nothing here needs a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ctnet_nnunet.checkpoints import write_checkpoint
from ctnet_nnunet.cross_modality.cmft import Translators
from ctnet_nnunet.planning.cross_modality import fusion_network
from ctnet_nnunet.planning.options import read_options
from tests.inference.threshold_model import write_model

CHANNELS = ("T1", "T1c", "T2", "FLAIR")
LABELS = ("core", "rim")


def write_fusion(folder: Path, trainer: str, folds: int = 2, **table: Any) -> Path:
    """Write a model folder: pairs (T1, T1c) and (T2, FLAIR), two classes, patch 8³, the plan's U-Net as branches.

    Args:
        folder: To write, named as nnU-Net names it.
        trainer: nnUNetTrainerCMFF or nnUNetTrainerCMFT; the latter's checkpoint holds generators, too.
        folds: How many, with weights of their own.
        table: Keys of ``cross_modality``.
    """
    write_model(folder, LABELS, CHANNELS)
    settled = {"pairs": [[0, 1], [2, 3]], "regions": False, "arch": "plan", **table}
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["ctnet"] = {"cross_modality": settled}
    (folder / "plans.json").write_text(json.dumps(plans))
    options = read_options(configuration["ctnet"]).cross_modality
    for fold in range(folds):
        torch.manual_seed(fold)
        network = fusion_network(configuration, options, len(LABELS) + 1)
        content = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0,),
            "ctnet": {"generator_heads": Translators(network).heads.state_dict()},
        }
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        write_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder
