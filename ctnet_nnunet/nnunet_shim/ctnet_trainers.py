"""The trainers that ``nnUNetv2_train -tr NAME`` and ``nnUNetv2_predict -tr NAME`` find through nnUNet_extTrainer.

nnU-Net imports this file as the top-level module ``ctnet_trainers``; the classes keep the identity they have in
``ctnet_nnunet.trainers``, so they pickle and compare equal wherever they were found.
"""

from __future__ import annotations

import sys

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.nnunet_version import require_supported_nnunet

try:
    require_supported_nnunet()
except SetupError as error:
    # nnU-Net would show a traceback and exit with 1: a wrong version must end in the one sentence.
    print(f"ctnet: error: {error}", file=sys.stderr)
    sys.exit(error.exit_status)

# Only after the version is known to fit: these import nnunetv2.
from ctnet_nnunet.trainers.cmff import nnUNetTrainerCMFF
from ctnet_nnunet.trainers.cmft import nnUNetTrainerCMFT
from ctnet_nnunet.trainers.ctnet import nnUNetTrainerCTNet
from ctnet_nnunet.trainers.early_fusion import nnUNetTrainerEarlyFusion
from ctnet_nnunet.trainers.imaging_planes import nnUNetTrainerImagingPlanes
from ctnet_nnunet.trainers.mean_teacher import nnUNetTrainerMeanTeacher
from ctnet_nnunet.trainers.pretrain import nnUNetTrainerCTNetPretrain
from ctnet_nnunet.trainers.reciprocal import nnUNetTrainerReciprocal
from ctnet_nnunet.trainers.stock_sgd import nnUNetTrainerStockSGD
from ctnet_nnunet.trainers.supervised_twin import nnUNetTrainerSupervisedTwin
from ctnet_nnunet.trainers.volf import nnUNetTrainerVolF

__all__ = [
    "nnUNetTrainerCMFF",
    "nnUNetTrainerCMFT",
    "nnUNetTrainerCTNet",
    "nnUNetTrainerCTNetPretrain",
    "nnUNetTrainerEarlyFusion",
    "nnUNetTrainerImagingPlanes",
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerReciprocal",
    "nnUNetTrainerStockSGD",
    "nnUNetTrainerSupervisedTwin",
    "nnUNetTrainerVolF",
]
