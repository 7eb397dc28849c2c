"""``-tr nnUNetTrainerMeanTeacher``: the usual semi-supervised reference, in the frame of reciprocal learning."""

from __future__ import annotations

from typing import Any

from torch import nn

from ctnet_nnunet.semi_supervised.mean_teacher import MeanTeacher
from ctnet_nnunet.trainers.semi_supervised import SemiSupervisedTrainer
from ctnet_nnunet.trainers.stock_hooks import unwrapped


class nnUNetTrainerMeanTeacher(SemiSupervisedTrainer):
    """The student learns from labels and agrees with its own moving average on unlabelled scans."""

    def build_teacher(self, student: nn.Module) -> None:
        self.unit = MeanTeacher(student, self.semi.mean_teacher(), self.label_manager.has_regions)
        self.teacher = self.unit.teacher

    def start_teacher(self) -> None:
        self.unit.restart(unwrapped(self.network))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        (images, target), unlabelled = self.labelled(batch), self.unlabelled(batch)
        done = self.current_epoch * self.num_iterations_per_epoch + len(self._epoch_outputs)
        weight = self.unit.weight(done / (self.num_epochs * self.num_iterations_per_epoch))
        self.optimizer.zero_grad(set_to_none=True)
        supervised = self.supervised_loss(self.network, images, target)
        with self.autocast():
            consistency = self.unit.consistency(self.network, unlabelled)
        total = self.optimise(supervised + weight * consistency)
        if total == total:  # not nan: the student has moved
            self.unit.after_step(unwrapped(self.network))
        return {"loss": total, "loss_labelled": float(supervised.detach()), "consistency": float(consistency.detach()),
                "consistency_weight": weight}  # fmt: skip

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "averaged_steps": int(self.unit.average.n_averaged)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.unit.average.n_averaged.fill_(state["averaged_steps"])
