"""A table of nnU-Net plans, small enough to run on the CPU: each stands for a kind of plan that users have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.architectures.from_plan import as_ctnet, network_from_plan
from ctnet_nnunet.architectures.transformer import TransformerOptions

UNETS = "dynamic_network_architectures.architectures.unet"
SMALL = TransformerOptions(embed_dim=12, depth=2, heads=3, mlp_ratio=2.0, drop_path=0.0, reference_grid=3)


@dataclass(frozen=True)
class Plan:
    """One row: a plan's configuration, and what CTNet promises for it.

    ``stage`` and ``grid`` are worked out by hand from the rule of methods/ctnet.md: the deepest stage of stride 16 at
    most, one earlier under 27 tokens, one later over 4096.
    """

    name: str
    patch: tuple[int, ...]
    strides: Sequence[Sequence[int]]
    stage: int
    grid: tuple[int, ...]
    channels: int = 1
    classes: int = 3
    kernels: Sequence[Sequence[int]] | None = None
    residual: bool = False
    features: Sequence[int] | None = None
    blocks: Sequence[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        return len(self.patch)

    def unet_block(self) -> dict[str, Any]:
        """The ``architecture`` block that nnU-Net's planners write for the plain U-Net of this plan."""
        stages, axes = len(self.strides), self.dimensions
        counts = "n_blocks_per_stage" if self.residual else "n_conv_per_stage"
        return {
            "network_class_name": f"{UNETS}.{'ResidualEncoderUNet' if self.residual else 'PlainConvUNet'}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(self.features or [min(4 * 2**i, 12) for i in range(stages)]),
                "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
                "kernel_sizes": [list(k) for k in self.kernels or [[3] * axes] * stages],
                "strides": [list(stride) for stride in self.strides],
                counts: list(self.blocks or [1] * stages),
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
                **self.extra,
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def block(self, transformer: TransformerOptions | None = SMALL) -> dict[str, Any]:
        """The same as a CTNet block."""
        return as_ctnet(self.unet_block(), self.patch, transformer)

    def network(self, transformer: TransformerOptions | None = SMALL, deep_supervision: bool = False) -> CTNet:
        network = network_from_plan(self.block(transformer), self.channels, self.classes, deep_supervision)
        assert isinstance(network, CTNet)
        return network

    def image(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, self.channels, *self.patch, generator=torch.Generator().manual_seed(seed))


def halvings(axes: int, count: int) -> list[list[int]]:
    return [[1] * axes, *[[2] * axes] * count]


ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
PLANS = [
    Plan("isotropic 3d", (32, 32, 32), halvings(3, 3), 3, (4, 4, 4)),
    Plan("isotropic 3d at stride 16", (48, 48, 48), halvings(3, 4), 4, (3, 3, 3), channels=2),
    Plan("anisotropic, first strides (1,2,2)", (12, 40, 32), ANISOTROPIC, 3, (3, 5, 4),
         kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]),
    Plan("thin slab, never pooled along z", (5, 48, 32), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]], 3, (5, 6, 4),
         kernels=[[1, 3, 3], [1, 3, 3], [1, 3, 3], [3, 3, 3]], classes=2),
    Plan("uneven grid", (24, 40, 56), halvings(3, 3), 3, (3, 5, 7), channels=3, classes=5),
    Plan("tiny: one stage earlier", (16, 16, 16), halvings(3, 3), 2, (4, 4, 4), channels=4, classes=2),
    Plan("deeper than stride 16", (64, 64, 16), [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 1], [2, 2, 1]],
         4, (4, 4, 4)),
    Plan("2d", (96, 80), halvings(2, 4), 4, (6, 5)),
    Plan("2d deeper than stride 16", (128, 96), halvings(2, 5), 4, (8, 6), channels=2, classes=9),
    Plan("ResEnc 3d", (32, 24, 24), halvings(3, 3), 3, (4, 3, 3), residual=True, blocks=[1, 2, 1, 1]),
    Plan("ResEnc 2d", (64, 64), halvings(2, 3), 3, (8, 8), residual=True, channels=3, blocks=[1, 1, 3, 1]),
    Plan("ResEnc anisotropic", (12, 24, 32), ANISOTROPIC, 3, (3, 3, 4), residual=True, classes=4,
         kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]),
    Plan("2d, more than 4096 tokens at stride 16: one stage later", (1056, 1056), halvings(2, 5), 5, (33, 33),
         features=[2, 2, 2, 2, 4, 4]),
    Plan("several convolutions a stage, no bias", (24, 24, 24), halvings(3, 3), 3, (3, 3, 3), blocks=[2, 2, 2, 2],
         extra={"conv_bias": False}),
]  # fmt: skip
BY_NAME = {plan.name: plan for plan in PLANS}
