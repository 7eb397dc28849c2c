"""Masked feature reconstruction: predict the CNN's features at hidden places from what the transformer sees around.

Follows the abstract of CTNet (Deng et al., Magnetic Resonance Letters 6(1):200226, 2026), which names masked feature
reconstruction as one of two pretext tasks; the details are ours. The CNN's tokens are masked where they enter the
transformer. The target is the layer-normalised token of a teacher, an exponential moving average (EMA) of stem, stages
and embedding that sees the whole patch; a moving target admits no constant solution, which the online features do.
Receptive fields overlap, so the voxels of masked cells are zeroed for the online branch too, else reconstruction would
be interpolation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.pretext.base import PretextContext, PretextTask, Views, whole_count

BLOCK_FROM_GRID = 6
COLLAPSED_STD = 1e-3


@dataclass(frozen=True)
class MaskedFeaturesOptions:
    """Options of the task.

    Attributes:
        mask_ratio: Share of tokens to hide, 0 ≤ ratio < 1.
        mask_block: Edge in tokens of the hidden blocks, on axes whose grid is 6 or more; 1 on shorter axes.
        mask_input: Also zero the voxels of hidden cells for the online branch.
        mask_target: ``ema_feature``, ``online_feature`` (the same CNN, gradient stopped) or ``voxel``.
        teacher_momentum: The EMA's momentum at the start; it rises to 1 along a cosine.
    """

    mask_ratio: float = 0.6
    mask_block: int = 2
    mask_input: bool = True
    mask_target: Literal["ema_feature", "online_feature", "voxel"] = "ema_feature"
    teacher_momentum: float = 0.996

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: {self.mask_ratio} is not in 0 <= ratio < 1")
        if self.mask_block < 1:
            raise ValueError(f"mask_block: {self.mask_block} is less than 1")
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum: {self.teacher_momentum} is not in 0 <= momentum <= 1")


class MaskedFeatures(PretextTask):
    """Smooth L1 between predicted and teacher's tokens, over the hidden tokens only."""

    Options: ClassVar = MaskedFeaturesOptions
    needs_tokens: ClassVar = True
    trains_decoder = False
    views: ClassVar = frozenset({"augmented"})

    def __init__(self, network: nn.Module, context: PretextContext, options: MaskedFeaturesOptions) -> None:
        super().__init__(network, context, options)
        self.options = options
        self.grid: tuple[int, ...] = network.token_grid(context.patch_size)  # type: ignore[operator]
        self.cell = tuple(size // count for size, count in zip(context.patch_size, self.grid, strict=True))
        dim: int = network.transformer.embed_dim  # type: ignore[union-attr, assignment]
        voxels = math.prod(self.cell) * context.input_channels
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.predictor = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, voxels if options.mask_target == "voxel" else dim)
        )
        self.teacher = FeatureTeacher(network) if options.mask_target == "ema_feature" else None

    def sample(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """``mask`` (B, *grid) bool, True where a token is hidden."""
        batch = views["augmented"].shape[0]
        ratio, block = self.options.mask_ratio, self.options.mask_block
        masks = [block_mask(self.grid, ratio, block, generator) for _ in range(batch)]
        return {"mask": torch.stack(masks)}

    def targets(self, views: Views, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``image`` whole, ``seen`` with hidden cells zeroed (both (B, C, *patch)), and ``mask`` (B, N)."""
        image = views["augmented"]
        mask = draw["mask"].to(image.device)
        seen = image
        if self.options.mask_input:
            voxel_mask = mask
            for axis, edge in enumerate(self.cell, start=1):
                voxel_mask = voxel_mask.repeat_interleave(edge, dim=axis)
            seen = image.masked_fill(voxel_mask[:, None], 0.0)
        return {"image": image, "seen": seen, "mask": mask.flatten(1)}

    def counted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The hidden tokens, of which samples have different numbers where ``mask_block`` does not divide the grid."""
        return batch["mask"].sum()[None]

    def forward(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss``, and ``token_std``, the spread of the target tokens (collapsed below 1e-3)."""
        transformer = network.transformer
        mask = batch["mask"]
        tokens = transformer.embed(network.convolutional_features(batch["seen"]))  # type: ignore[union-attr, operator]
        hidden = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        predicted = self.predictor(transformer.encode(hidden, self.grid))  # type: ignore[union-attr, operator]
        target, spread = self._target(network, batch["image"])
        return {"loss": masked_loss(predicted, target, mask, whole_count(batch)), "token_std": spread}

    @torch.no_grad()
    def _target(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """Target (B, N, E or voxels) and the standard deviation over tokens, averaged over features."""
        if self.options.mask_target == "voxel":
            tokens = cells(image, self.cell)
            return tokens, tokens.float().std((0, 1)).mean()
        if self.teacher is not None:
            tokens = self.teacher(image)
        else:
            features = network.convolutional_features(image)  # type: ignore[operator]
            tokens = network.transformer.embed(features)  # type: ignore[union-attr, operator]
        return F.layer_norm(tokens.float(), tokens.shape[-1:]), tokens.float().std((0, 1)).mean()

    def before_training(self, network: nn.Module) -> None:
        if self.teacher is not None:
            self.teacher.follow(network, momentum=0.0)

    def after_step(self, network: nn.Module, progress: float) -> None:
        if self.teacher is not None:
            self.teacher.follow(network, cosine_momentum(self.options.teacher_momentum, progress))


class FeatureTeacher(nn.Module):
    """EMA copy of stem, stages and embedding: image (B, C, *patch) → tokens (B, N, E), without gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules_followed = nn.ModuleList(copy.deepcopy(module) for module in _followed(network))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        for module in self.modules_followed:
            image = module(image)
        return image.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """teacher ← momentum · teacher + (1 - momentum) · network, buffers copied."""
        for teacher, online in zip(self.modules_followed, _followed(network), strict=True):
            for mine, theirs in zip(teacher.parameters(), online.parameters(), strict=True):
                mine.lerp_(theirs.detach(), 1 - momentum)
            for kept, current in zip(teacher.buffers(), online.buffers(), strict=True):
                kept.copy_(current)


def _followed(network: nn.Module) -> list[nn.Module]:
    encoder, transformer, last = network.encoder, network.transformer, network.transformer_stage
    stem = getattr(encoder, "stem", None)
    stages = list(encoder.stages[: last + 1])  # type: ignore[union-attr, index, operator]
    return [*([] if stem is None else [stem]), *stages, transformer.embedding]  # type: ignore[union-attr, list-item]


def cosine_momentum(start: float, progress: float) -> float:
    """``start`` at progress 0, 1 at progress 1, along half a cosine."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def block_mask(grid: Sequence[int], ratio: float, block: int, generator: torch.Generator) -> Tensor:
    """A random mask (*grid) of bool that hides round(ratio · blocks) whole blocks.

    Blocks have ``block`` tokens along axes of 6 or more, else 1. On an axis that ``block`` does not divide, the last
    block is shorter.
    """
    edges = [block if size >= BLOCK_FROM_GRID else 1 for size in grid]
    counts = [math.ceil(size / edge) for size, edge in zip(grid, edges, strict=True)]
    total = math.prod(counts)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=generator)[: round(ratio * total)]] = True
    mask = mask.view(*counts)
    for axis, (edge, size) in enumerate(zip(edges, grid, strict=True)):
        mask = mask.repeat_interleave(edge, dim=axis).narrow(axis, 0, size)
    return mask


def cells(image: Tensor, cell: Sequence[int]) -> Tensor:
    """Cut an image (B, C, *patch) into the cells of the token grid: (B, N, C · prod(cell))."""
    batch, channels = image.shape[:2]
    for axis, edge in enumerate(cell):
        image = image.unflatten(2 + 2 * axis, (-1, edge))  # type: ignore[no-untyped-call]
    axes = len(cell)
    grid_axes = [2 + 2 * axis for axis in range(axes)]
    inner_axes = [3 + 2 * axis for axis in range(axes)]
    return image.permute(0, *grid_axes, 1, *inner_axes).reshape(batch, -1, channels * math.prod(cell))


def masked_loss(predicted: Tensor, target: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Smooth L1 (β = 1) of (B, N, F) against (B, N, F), mean over the hidden tokens of mask (B, N); 0 if none.

    ``count`` is what the sum is divided by, in place of the number of hidden tokens.
    """
    per_token = F.smooth_l1_loss(predicted.float(), target.float(), reduction="none").mean(-1)
    weight = mask.to(per_token.dtype)
    return (per_token * weight).sum() / (weight.sum().clamp(min=1) if count is None else count)
