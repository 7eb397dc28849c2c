"""The decoder's features at full resolution, behind which a pretext task puts a head of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.ctnet import CTNet


def encoder_features(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Image (B, C, *patch) → what the decoder reads: one map a stage, from full resolution to the coarsest.

    Args:
        network: CTNet, PlainConvUNet or ResidualEncoderUNet.
        image: The input.
    """
    skips: list[Tensor] = network.skips(image) if isinstance(network, CTNet) else network.encoder(image)  # type: ignore[operator]
    return skips


def decoded_features(network: nn.Module, skips: list[Tensor]) -> Tensor:
    """The encoder's maps → what the finest segmentation head would read: (B, features of stage 0, *patch)."""
    decoder = network.decoder
    features = skips[-1]
    steps = zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True)  # type: ignore[union-attr, arg-type]
    for upsample, stage, skip in steps:
        features = stage(torch.cat((upsample(features), skip), 1))
    return features


def full_resolution_features(network: nn.Module, image: Tensor) -> Tensor:
    """Image (B, C, *patch) → what the finest segmentation head would read: (B, features of stage 0, *patch)."""
    return decoded_features(network, encoder_features(network, image))
