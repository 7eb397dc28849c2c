"""``-tr nnUNetTrainerEarlyFusion``: one branch on all sequences at once, the reference of nnUNetTrainerCMFF."""

from __future__ import annotations

from typing import ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ctnet_nnunet.planning.cross_modality import branch
from ctnet_nnunet.planning.options import Mode, read_options
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.schedule import ConstantScheduler, constant_adam
from ctnet_nnunet.trainers.user_errors import reports_user_errors


class nnUNetTrainerEarlyFusion(nnUNetTrainerCTNet):
    """A U-Net that is what CMFF's branch is, but sees every sequence: no pairs, no masks, no stage 1.

    Data, optimiser and schedule (``cmff``) are nnUNetTrainerCMFF's; the loss is nnU-Net's on the one output at full
    resolution, which is what nnUNetTrainerCMFF logs as ``fused``, so that the two can be compared.
    """

    mode: ClassVar[Mode] = "cmff"

    def initialize(self) -> None:
        self.enable_deep_supervision = False
        super().initialize()

    @staticmethod
    @reports_user_errors
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        configuration = configuration_manager.configuration
        options = read_options(configuration.get("ctnet"), f"plans {plans_manager.plans['plans_name']}")
        return branch(configuration, options.cross_modality, num_input_channels, num_output_channels)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ConstantScheduler]:
        return constant_adam(self.network, self.schedule)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is one output."""
