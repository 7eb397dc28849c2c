"""The decoder's features, behind which a pretext task or a fusion puts heads of its own."""

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


def decoder_features(network: nn.Module, skips: list[Tensor]) -> list[Tensor]:
    """The encoder's maps → the deepest of them and what each decoder stage makes, coarsest first.

    The last is what the finest segmentation head would read: (B, features of stage 0, *patch).
    """
    decoder = network.decoder
    features = [skips[-1]]
    steps = zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True)  # type: ignore[union-attr, arg-type]
    for upsample, stage, skip in steps:
        features.append(stage(torch.cat((upsample(features[-1]), skip), 1)))
    return features


def decoder_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The decoder's own weights, segmentation heads included; the decoder also holds the encoder that it reads."""
    read = {id(parameter) for parameter in network.encoder.parameters()}  # type: ignore[union-attr]
    return [parameter for parameter in network.decoder.parameters() if id(parameter) not in read]  # type: ignore[union-attr]


def full_resolution_features(network: nn.Module, image: Tensor) -> Tensor:
    """Image (B, C, *patch) → what the finest segmentation head would read: (B, features of stage 0, *patch)."""
    return decoder_features(network, encoder_features(network, image))[-1]
