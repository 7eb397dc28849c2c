"""A vision transformer as an inserted residual on a coarse feature map.

Follows the abstract of CTNet (Deng, Xi, Chen, Bao: "Self-supervised pre-training based hybrid network for deep gray
matter nuclei segmentation", Magnetic Resonance Letters 6(1):200226, 2026, doi 10.1016/j.mrl.2025.200226), which says
that the encoder consists of a 3D CNN and a vision transformer. No table of the architecture is public: sizes, order
and the residual form are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TransformerOptions:
    """Size of the transformer; the defaults are preset ``m``.

    Attributes:
        embed_dim: Token width E; a multiple of ``heads``.
        depth: Number of blocks; the drop-path rate rises linearly from 0 to ``drop_path`` over them.
        heads: Attention heads.
        mlp_ratio: Width of a block's hidden layer as a multiple of E.
        drop_path: Stochastic depth rate of the last block.
        reference_grid: Edge length of the learnable position table. It is fixed, and interpolated to the grid at hand,
            so that checkpoints do not depend on the patch size.
        residual_scale: Initial value of the scale of the residual. Small, so that training starts near the plan's own
            U-Net; not zero, so that every parameter learns from the first step on.
    """

    embed_dim: int = 384
    depth: int = 8
    heads: int = 6
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    reference_grid: int = 6
    residual_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.embed_dim % self.heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of heads={self.heads}")


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (B, N, E), by torch's scaled_dot_product_attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, count, dim))
        return projected


class TransformerBlock(nn.Module):
    """Pre-norm block: tokens + attention(LN), then + MLP(LN), each with stochastic depth."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.hidden = hidden
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        block_output: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return block_output


class Unembed(nn.Module):
    """Tokens on their grid (B, E, *grid) → the residual (B, C, *grid): 1x1 projection, instance norm, LeakyReLU."""

    def __init__(self, dim: int, channels: int, conv_op: type[nn.Module], residual_scale: float) -> None:
        super().__init__()
        norm_op = nn.InstanceNorm3d if issubclass(conv_op, nn.Conv3d) else nn.InstanceNorm2d
        self.projection = conv_op(dim, channels, 1)
        self.norm = norm_op(channels, affine=True)
        self.nonlinearity = nn.LeakyReLU(0.01)
        nn.init.constant_(self.norm.weight, residual_scale)

    def forward(self, grid_tokens: Tensor) -> Tensor:
        residual: Tensor = self.nonlinearity(self.norm(self.projection(grid_tokens)))
        return residual


class TransformerResidual(nn.Module):
    """``unembed(ViT(embed(f)))`` for a feature map f (B, C, *grid); the caller adds it to f.

    The three steps are public, because a pretext masks tokens between the first and the second:
    :meth:`embed` → :meth:`encode` → :meth:`residual`.
    """

    def __init__(self, channels: int, conv_op: type[nn.Module], options: TransformerOptions) -> None:
        super().__init__()
        self.embed_dim = options.embed_dim
        self.channels = channels
        self.dimensions = 3 if issubclass(conv_op, nn.Conv3d) else 2
        self.embedding = conv_op(channels, options.embed_dim, 1)
        table = torch.empty(1, options.embed_dim, *[options.reference_grid] * self.dimensions)
        self.position_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        rates = [options.drop_path * index / max(options.depth - 1, 1) for index in range(options.depth)]
        self.blocks = nn.ModuleList(
            TransformerBlock(options.embed_dim, options.heads, options.mlp_ratio, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(options.embed_dim)
        self.unembed = Unembed(options.embed_dim, channels, conv_op, options.residual_scale)
        self.apply(_initialise_linear)

    def embed(self, features: Tensor) -> Tensor:
        """Features (B, C, *grid) → tokens (B, N, E), N = prod(grid), without position."""
        tokens: Tensor = self.embedding(features).flatten(2).transpose(1, 2)
        return tokens

    def position(self, grid: Sequence[int]) -> Tensor:
        """The position table on ``grid``: (1, N, E), interpolated linearly from its fixed reference grid."""
        table: Tensor = self.position_table
        if tuple(table.shape[2:]) != tuple(grid):
            mode = "trilinear" if self.dimensions == 3 else "bilinear"
            table = F.interpolate(table, size=tuple(grid), mode=mode, align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def encode(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Tokens (B, N, E) without position → (B, N, E) behind all blocks and the final norm."""
        tokens = tokens + self.position(grid).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def residual(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Encoded tokens (B, N, E) → residual (B, C, *grid)."""
        on_grid = tokens.transpose(1, 2).reshape(tokens.shape[0], self.embed_dim, *grid)
        residual: Tensor = self.unembed(on_grid)
        return residual

    def forward(self, features: Tensor) -> Tensor:
        grid = features.shape[2:]
        return self.residual(self.encode(self.embed(features), grid), grid)

    def feature_map_size(self, grid: Sequence[int]) -> int:
        """Activation memory in the unit of nnU-Net's planner: elements of a convolution's output.

        The planner counts each convolution's output once, and its memory per element covers two kept tensors (the
        convolution's output and the norm's). Per token, a block keeps 8 E (both norms, qkv, attention's output, two
        residual sums) + 2 · mlp_ratio · E (before and behind the GELU), so half of that counts here; the embedding
        and the projection count in full.
        """
        block = self.blocks[0] if len(self.blocks) else None
        hidden = block.hidden if isinstance(block, TransformerBlock) else 0
        per_token = len(self.blocks) * (8 * self.embed_dim + 2 * hidden) // 2
        return prod(grid) * (per_token + self.embed_dim + self.channels)


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
