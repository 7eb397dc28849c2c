"""Thin adapters from nnU-Net's trainer hooks to the pure units; chosen with ``nnUNetv2_train … -tr NAME``."""
