"""CTNet: a plan's U-Net, kept whole, with a transformer as a residual on one coarse encoder stage.

Follows the abstract of Deng et al., Magnetic Resonance Letters 6(1):200226 (2026): an encoder made of a CNN for local
detail and a vision transformer for the global context, and a segmentation decoder. The details are ours: the encoder
and decoder blocks are those of the nnU-Net plan, and the transformer is added to the features of one stage, which feed
both the skip connection and the next stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn

from ctnet_nnunet.architectures.transformer import TransformerOptions, TransformerResidual

MAX_STRIDE = 16
MIN_TOKENS, MAX_TOKENS = 27, 4096


class CTNet(AbstractDynamicNetworkArchitectures):
    """The plan's U-Net with a transformer residual in its encoder.

    With the last projection of the transformer at zero, or with ``transformer=None`` (preset ``identity``), the output
    equals the plan's U-Net to the bit. State-dict keys of the U-Net part are those of the U-Net.

    Args:
        input_channels: Channels C of the input (B, C, *patch).
        num_classes: Channels of the logits.
        transformer: ``{"stage": encoder stage, **TransformerOptions}`` or None for no transformer.
        deep_supervision: With it the output is a list of logits, finest first; toggled at
            ``network.decoder.deep_supervision``. The state dict has the same keys either way.
        **unet: The plan's ``arch_kwargs`` for PlainConvUNet (``n_conv_per_stage``) or ResidualEncoderUNet
            (``n_blocks_per_stage``).

    Raises:
        ValueError: If the stage lies outside the encoder or a transformer option is unknown.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        transformer: Mapping[str, Any] | None = None,
        deep_supervision: bool = False,
        **unet: Any,
    ) -> None:
        super().__init__()
        unet_class = ResidualEncoderUNet if "n_blocks_per_stage" in unet else PlainConvUNet
        plan_unet = unet_class(
            input_channels=input_channels, num_classes=num_classes, deep_supervision=deep_supervision, **unet
        )
        self.key_to_encoder = plan_unet.key_to_encoder
        self.key_to_stem = plan_unet.key_to_stem
        self.keys_to_in_proj = plan_unet.keys_to_in_proj
        self.encoder = plan_unet.encoder
        self.decoder = plan_unet.decoder
        self.transformer: TransformerResidual | None = None
        self.transformer_stage: int | None = None
        if transformer is not None:
            self._insert(dict(transformer))

    def _insert(self, options: dict[str, Any]) -> None:
        stage = options.pop("stage", -1)
        stages = len(self.encoder.output_channels)
        if not 0 <= stage < stages:
            raise ValueError(f"transformer stage {stage} outside the {stages} encoder stages")
        try:
            parsed = TransformerOptions(**options)
        except TypeError as error:
            raise ValueError(f"transformer options: {error}") from None
        self.transformer_stage = stage
        self.transformer = TransformerResidual(self.encoder.output_channels[stage], self.encoder.conv_op, parsed)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Image (B, C, *patch) → logits (B, num_classes, *patch), or their list under deep supervision."""
        logits: Tensor | list[Tensor] = self.decoder(self.skips(image))
        return logits

    def skips(self, image: Tensor) -> list[Tensor]:
        """The encoder's features of every stage, finest first, the transformer's residual included."""
        skips: list[Tensor] = []
        features = self._stem(image)
        for index, stage in enumerate(self.encoder.stages):
            features = stage(features)
            if self.transformer is not None and index == self.transformer_stage:
                features = features + self.transformer(features)
            skips.append(features)
        return skips

    def convolutional_features(self, image: Tensor) -> Tensor:
        """Image (B, C, *patch) → the CNN's features (B, C', *grid) that the transformer would read.

        Raises:
            ValueError: If this network has no transformer.
        """
        if self.transformer_stage is None:
            raise ValueError("this CTNet has no transformer (preset identity), so it has no tokens")
        features = self._stem(image)
        for stage in self.encoder.stages[: self.transformer_stage + 1]:
            features = stage(features)
        return features

    def _stem(self, image: Tensor) -> Tensor:
        stem = getattr(self.encoder, "stem", None)
        return image if stem is None else stem(image)

    def token_grid(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """The transformer's grid for a patch size in voxels."""
        if self.transformer_stage is None:
            raise ValueError("this CTNet has no transformer (preset identity), so it has no tokens")
        strides = cumulative_strides(self.encoder.strides)[self.transformer_stage]
        return tuple(size // stride for size, stride in zip(patch_size, strides, strict=True))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Activation memory of one sample in the unit of nnU-Net's planner (elements of convolution outputs)."""
        size = self.encoder.compute_conv_feature_map_size(input_size)
        size += self.decoder.compute_conv_feature_map_size(input_size)
        if self.transformer is not None:
            size += self.transformer.feature_map_size(self.token_grid(input_size))
        return np.int64(size)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation of convolutions and residual blocks; the transformer initialises itself."""
        InitWeights_He(1e-2)(module)
        init_last_bn_before_add_to_0(module)


def cumulative_strides(strides: Sequence[Sequence[int] | int]) -> list[tuple[int, ...]]:
    """Per-stage strides as they stand in a plan → the cumulative stride of each stage, per axis."""
    return [tuple(int(value) for value in row) for row in np.cumprod(np.vstack(strides), axis=0)]


def choose_transformer_stage(strides: Sequence[Sequence[int]], patch_size: Sequence[int]) -> int:
    """The deepest encoder stage whose cumulative stride is at most 16 on every axis.

    One stage earlier while its grid would hold fewer than 27 tokens, one later while it would hold more than 4096,
    so that attention neither degenerates nor dominates memory.
    """
    cumulative = cumulative_strides(strides)
    tokens = [prod(size // stride for size, stride in zip(patch_size, row, strict=True)) for row in cumulative]
    stage = max(index for index, row in enumerate(cumulative) if max(row) <= MAX_STRIDE or index == 0)
    while stage > 0 and tokens[stage] < MIN_TOKENS:
        stage -= 1
    while stage + 1 < len(cumulative) and tokens[stage] > MAX_TOKENS:
        stage += 1
    return stage
