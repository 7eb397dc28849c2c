"""Thin adapters from nnU-Net's trainer hooks to the pure units; chosen with ``nnUNetv2_train … -tr NAME``."""

from ctnet_nnunet.nnunet_version import require_supported_nnunet

require_supported_nnunet()  # before any module here imports an nnunetv2 whose hooks may differ
