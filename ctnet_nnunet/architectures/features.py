"""The decoder's features, behind which a pretext task or a fusion puts heads of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.ctnet import CTNet


def full_resolution_features(network: nn.Module, image: Tensor) -> Tensor:
    """Image (B, C, *patch) → what the finest segmentation head would read: (B, features of stage 0, *patch).

    Args:
        network: CTNet, PlainConvUNet or ResidualEncoderUNet.
        image: The input.
    """
    return decoder_features(network, image)[-1]


def decoder_features(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Image (B, C, *patch) → the deepest encoder stage's features and each decoder stage's, coarsest first.

    Args:
        network: CTNet, PlainConvUNet or ResidualEncoderUNet.
        image: The input.
    """
    skips: list[Tensor] = network.skips(image) if isinstance(network, CTNet) else network.encoder(image)  # type: ignore[operator]
    decoder = network.decoder
    features = [skips[-1]]
    steps = zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True)  # type: ignore[union-attr, arg-type]
    for upsample, stage, skip in steps:
        features.append(stage(torch.cat((upsample(features[-1]), skip), 1)))
    return features
