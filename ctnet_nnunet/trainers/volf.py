"""``-tr nnUNetTrainerVolF``: volume fusion pretraining of the plan's own network, decoder included."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ctnet_nnunet.architectures.from_plan import CTNET_CLASS_NAME, check_patch, network_from_plan
from ctnet_nnunet.planning.options import Mode
from ctnet_nnunet.trainers.pretrain import nnUNetTrainerCTNetPretrain
from ctnet_nnunet.trainers.user_errors import reports_user_errors


class nnUNetTrainerVolF(nnUNetTrainerCTNetPretrain):
    """Volume fusion on the plan's network as it is: U-Net, ResEnc or CTNet, 2d or 3d.

    Its checkpoint loads with ``-pretrained_weights`` into stock ``nnUNetTrainer`` (U-Net and ResEnc plans) and into
    ``nnUNetTrainerCTNet`` (CTNet plans). A plan whose block asks for other tasks gets those.
    """

    mode: ClassVar[Mode] = "volf"

    @staticmethod
    @reports_user_errors
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        architecture = configuration_manager.configuration["architecture"]
        check_patch(architecture, configuration_manager.configuration["patch_size"])
        return network_from_plan(architecture, num_input_channels, num_output_channels, enable_deep_supervision)

    def pretext_weights(self) -> dict[str, float]:
        """The tasks that the plan asks for; volume fusion alone where it leaves its preset's."""
        own = self.options.own_tasks()
        return {"volume_fusion": 1.0} if own is None else own

    def downstream_trainer(self) -> str:
        name = self.configuration_manager.configuration["architecture"]["network_class_name"]
        return "nnUNetTrainerCTNet" if name == CTNET_CLASS_NAME else "nnUNetTrainer"
