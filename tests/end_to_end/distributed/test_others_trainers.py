"""A trainer of others, made of stock nnU-Net's, in two processes: trained, gone on with, validated."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ctnet_nnunet.shim_path import SHIM_FOLDER, VARIABLE
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.distributed.test_refusals import words
from tests.end_to_end.tiny import Tiny

NAME = "nnUNetTrainerOfOthers"
SOURCE = f"""
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class {NAME}(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 1, 1
"""


def test_a_trainer_of_others(copy_of_planned: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    (tmp_path / "others.py").write_text(SOURCE)
    ext = {VARIABLE: f"{tmp_path}:{SHIM_FOLDER}"}
    command = words(tiny, NAME, "-p", "nnUNetPlans", "--batch-per-rank", "2")
    model = tiny.env.results / tiny.dataset / f"{NAME}__nnUNetPlans__3d_fullres"
    for more in ([], ["--c"]):
        for rank in run_ranks(tiny.env, *command, *more, by_rank={0: ext, 1: ext}):
            rank.succeeded()
        summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 1
        assert not (model / "fold_0" / "validation_ranks").exists()
        (model / "fold_0" / "validation" / "summary.json").unlink()
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (NAME, 1)
    assert not any(key.startswith("module.") for key in checkpoint["network_weights"])
    assert len(list((model / "fold_0").glob("training_log_*"))) == 2  # rank 0's alone
