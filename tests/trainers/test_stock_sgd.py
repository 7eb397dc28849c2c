"""nnUNetTrainerStockSGD is the stock trainer's training: the same steps give the same weights, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from tests.conftest import NnunetEnv
from tests.synthetic import make_dataset, plan_and_preprocess

# float32, as stock trains on the CPU.
BLOCK = {"preset": "identity", "epochs": 4, "iterations": 3, "val_iterations": 1, "mixed_precision": False}


@pytest.fixture(scope="module")
def plans(nnunet_env: NnunetEnv) -> int:
    import json

    make_dataset(nnunet_env.raw, 720, "Stock", 5, 0, seed=3)
    plan_and_preprocess(720, ["3d_fullres"])
    file = nnunet_env.preprocessed / "Dataset720_Stock" / "nnUNetPlans.json"
    content = json.loads(file.read_text())
    content["configurations"]["3d_fullres"]["ctnet"] = BLOCK
    file.write_text(json.dumps(content))
    return 720


def trained(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after five steps on the same batches, and the learning rates; built as the stock command builds it."""
    from ctnet_nnunet.shim_path import VARIABLE, with_shim

    monkeypatch.setenv(VARIABLE, with_shim(None))
    trainer: Any = get_trainer_from_args(str(number), "3d_fullres", 0, name, "nnUNetPlans", device=torch.device("cpu"))
    trainer.num_epochs = 4
    trainer.disable_checkpointing = True
    trainer.initialize()
    torch.manual_seed(1)
    for parameter in trainer.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    patch = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    random = np.random.RandomState(2)
    rates = []
    for step in range(5):
        shapes = [[round(size * scale) for size, scale in zip(patch, scales_of, strict=True)] for scales_of in scales]
        batch = {
            "data": torch.from_numpy(random.normal(size=(2, 1, *patch)).astype(np.float32)),
            "target": [torch.from_numpy(random.randint(0, 3, (2, 1, *shape))).to(torch.int16) for shape in shapes],
            "keys": ["a", "b"],
        }
        trainer.highest_label = 2
        trainer.network.train()
        trainer.lr_scheduler.step(min(step, 3))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.train_step(batch)
    return copy.deepcopy(trainer.network.state_dict()), rates


def test_five_steps_are_stock_s_five_steps(plans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, our_rates = trained(plans, "nnUNetTrainerStockSGD", monkeypatch)
    stock, stock_rates = trained(plans, "nnUNetTrainer", monkeypatch)
    assert our_rates == stock_rates
    assert our_rates[0] == pytest.approx(0.01)
    assert ours.keys() == stock.keys()
    for key in stock:
        assert torch.equal(ours[key], stock[key]), key
