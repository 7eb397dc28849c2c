"""``-tr nnUNetTrainerStockSGD``: stock nnU-Net's network, loss and optimiser, as the reference of comparisons."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF

STOCK_LEARNING_RATE, STOCK_WEIGHT_DECAY = 1e-2, 3e-5


class nnUNetTrainerStockSGD(nnUNetTrainerCTNet):
    """What stock ``nnUNetTrainer`` does to the plan's network, for as long as the ``ctnet`` block says.

    Network, loss, sampling, SGD with Nesterov momentum, learning rate 0.01 with polynomial decay, gradient clipping:
    stock. Epochs, iterations, seed, precision, mirroring that knows sides, and checkpoints: as in our other trainers,
    so that a comparison with them differs in nothing else.
    """

    build_network_architecture = staticmethod(nnUNetTrainerVolF.build_network_architecture)
    """The plan's network as it is, as volume fusion takes it."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        self.initial_lr, self.weight_decay = STOCK_LEARNING_RATE, STOCK_WEIGHT_DECAY
        optimizer, scheduler = nnUNetTrainer.configure_optimizers(self)
        return optimizer, scheduler
