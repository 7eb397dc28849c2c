"""``-tr nnUNetTrainerCMFF``: two branches and their mask-guided fusion, started from stage 1 by -pretrained_weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctnet_nnunet.cross_modality.cmff import MeanOverOutputs, PaperDice
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.trainers.cross_modality import CrossModalityTrainer, unwrapped_fusion
from ctnet_nnunet.trainers.schedule import ConstantScheduler
from ctnet_nnunet.trainers.stock_hooks import unwrapped
from ctnet_nnunet.trainers.user_errors import reports_user_errors


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
        optimizer = torch.optim.Adam(
            self.network.parameters(), self.schedule.learning_rate, weight_decay=self.schedule.weight_decay
        )
        warmup = self.schedule.warmup_epochs or 0
        return optimizer, ConstantScheduler([optimizer], self.schedule.learning_rate, warmup)

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
