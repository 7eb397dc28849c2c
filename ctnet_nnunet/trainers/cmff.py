"""``-tr nnUNetTrainerCMFF``: two branches and their mask-guided fusion, started from stage 1 by -pretrained_weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ctnet_nnunet.cross_modality.cmff import MeanOverOutputs, PaperDice
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.trainers.cross_modality import CrossModalityTrainer, unwrapped_fusion
from ctnet_nnunet.trainers.schedule import ConstantScheduler, constant_adam
from ctnet_nnunet.trainers.stock_hooks import unwrapped
from ctnet_nnunet.trainers.user_errors import reports_user_errors

OUTPUTS = ("fused", "branch_a", "branch_b")


class nnUNetTrainerCMFF(CrossModalityTrainer):
    """nnU-Net's data, sampling and augmentation; the loss is the mean over the fused and both branches' outputs.

    Prediction gives the fused logits. Deep supervision's switch turns the branches' outputs on and off.
    """

    mode: ClassVar[Mode] = "cmff"

    @reports_user_errors
    def initialize(self) -> None:
        super().initialize()
        self.knows_what_fits(unwrapped(self.network))
        self.announce_pairs()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ConstantScheduler]:
        return constant_adam(self.network, self.schedule)

    def _build_loss(self) -> nn.Module:
        if self.options.cross_modality.loss == "dice":
            return MeanOverOutputs(PaperDice(self.label_manager.has_regions, self.label_manager.ignore_label))
        # Stock's loss of one resolution: its wrapper for deep supervision would weight by resolution.
        self.enable_deep_supervision = False
        try:
            return MeanOverOutputs(super()._build_loss())
        finally:
            self.enable_deep_supervision = True

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        """One target at full resolution, in the list that stock's steps expect beside a list of outputs."""
        return [[1.0] * len(self.configuration_manager.patch_size)]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        unwrapped_fusion(self.network).aux = enabled

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        train, validation = super().get_tr_and_val_datasets()
        self.check_grids(dict.fromkeys([*train.identifiers, *validation.identifiers], "imagesTr"))
        return train, validation

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The loss, and beside it that of each output."""
        outputs = super().train_step(batch)
        return {**outputs, **dict(zip(OUTPUTS, self.loss.each, strict=True))}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        # What an older version's checkpoint left of the epoch has the loss alone.
        known = [output for output in train_outputs if OUTPUTS[0] in output]
        self.each = {name: float(np.nanmean([output[name] for output in known])) for name in OUTPUTS if known}
        self.print_to_log_file("train", ", ".join(f"{name} {value:.4f}" for name, value in self.each.items()))

    def epoch_scalars(self) -> dict[str, float]:
        return {**super().epoch_scalars(), **{f"train/{name}": value for name, value in self.each.items()}}

    def training_output(self, images: Tensor) -> Tensor | list[Tensor]:
        """All three outputs; with modality dropout the fusion misses a pair of some samples."""
        share = self.options.cross_modality.modality_dropout
        if share == 0:
            return super().training_output(images)
        present = drawn_presence(len(images), share).to(images.device)
        output: list[Tensor] = self.network(images, present)
        return output

    def extra_state(self) -> dict[str, Any]:
        return self.pairs_state()


def drawn_presence(samples: int, share: float) -> Tensor:
    """Which pairs the fusion may see (B, 2): of a ``share`` of the samples one is missing, either as often."""
    present = torch.ones(samples, 2)
    dropped = torch.rand(samples) < share
    which = torch.randint(2, (samples,))
    present[torch.arange(samples)[dropped], which[dropped]] = 0
    return present
