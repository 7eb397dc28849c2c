"""``-tr nnUNetTrainerSupervisedTwin``: the semi-supervised trainers without their unlabelled scans, to compare with."""

from __future__ import annotations

from typing import Any, ClassVar

from ctnet_nnunet.trainers.semi_supervised import SemiSupervisedTrainer


class nnUNetTrainerSupervisedTwin(SemiSupervisedTrainer):
    """The plan's network on the labelled cases alone, for as many iterations, with all else as the others have it."""

    needs_unlabelled: ClassVar[bool] = False

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        images, target = self.labelled(batch)
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": self.optimise(self.supervised_loss(self.network, images, target))}
