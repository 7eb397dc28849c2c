"""Volume fusion: tell, voxel by voxel, in which proportion two sub-volumes were mixed.

G. Wang, J. Fu, J. Wu, X. Luo, Y. Zhou, X. Liu, K. Li, J. Lin, B. Shen, S. Zhang, "Volume Fusion-based Self-Supervised
Pretraining for 3D Medical Image Segmentation", IEEE Transactions on Image Processing 34:6041-6052 (2025), doi
10.1109/TIP.2025.3610249; earlier preprint "MIS-FM", arXiv:2306.16925 (2023).

Two sub-volumes I_fg and I_bg are cut from one scan. A map Y of classes 0..K says how much of I_fg shows where: with
α = Y / K the network sees X = α · I_fg + (1 - α) · I_bg and has to segment Y. That is a segmentation task without
labels, so encoder and decoder are both trained. Brightness would give α away; each sub-volume's contrast is therefore
changed at random before the fusion.

Where the paper leaves a choice open, or is about one channel: all channels share the map, contrast and inversion are
drawn per channel; block sizes are fractions of the patch; the fused image is z-scored again, because that is what
fine-tuning will see. The head is the task's own 1x1 convolution on the decoder's full-resolution features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.architectures.features import full_resolution_features
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.pretext.base import PretextContext, PretextTask, Views

SMALLEST_BLOCK = 2
LOW_PERCENTILE, HIGH_PERCENTILE = (0.1, 2.0), (98.0, 99.9)
LOW_LEVEL, HIGH_LEVEL = 0.1, 0.9
GAMMA = (0.7, 1.5)


@dataclass(frozen=True)
class VolumeFusionOptions:
    """Options of the task.

    Attributes:
        fusion_map: ``grid`` (2025): a grid of equal blocks, a fixed share of them foreground; ``boxes`` (2023): random
            boxes, later ones on top.
        fusion_classes: K; the map has classes 0..K.
        fusion_block_min: Smallest edge of a block or box as a share of the patch's, at least 2 voxels.
        fusion_block_max: Largest edge of a block.
        fusion_foreground: Share of the grid's blocks that are not class 0.
        fusion_box_max: Largest edge of a box.
        fusion_boxes_min, fusion_boxes_max: How many boxes.
        fusion_pair: ``same``: both sub-volumes from one scan; ``batch``: the second from the batch's next scan.
        fusion_intensity: Change contrast, gamma and inversion before the fusion.
        fusion_inversion: Share of samples and channels whose two sub-volumes are inverted, where intensities change.
        fusion_restandardise: z-score the fused image per sample and channel.

    Raises:
        ValueError: On a value out of its range.
    """

    fusion_map: Literal["grid", "boxes"] = "grid"
    fusion_classes: int = 4
    fusion_block_min: float = 0.07
    fusion_block_max: float = 0.28
    fusion_foreground: float = 0.7
    fusion_box_max: float = 0.625
    fusion_boxes_min: int = 10
    fusion_boxes_max: int = 40
    fusion_pair: Literal["same", "batch"] = "same"
    fusion_intensity: bool = True
    fusion_inversion: float = 0.25
    fusion_restandardise: bool = True

    def __post_init__(self) -> None:
        if self.fusion_classes < 1:
            raise ValueError(f"fusion_classes: {self.fusion_classes} is less than 1")
        for name in ("fusion_block_max", "fusion_box_max"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in 0 < share <= 1")
        if not 0 < self.fusion_block_min <= self.largest:
            raise ValueError(f"fusion_block_min: {self.fusion_block_min} is not in 0 < min <= {self.largest}, the max")
        if not 0 < self.fusion_foreground <= 1:
            raise ValueError(f"fusion_foreground: {self.fusion_foreground} is not in 0 < share <= 1")
        if not 1 <= self.fusion_boxes_min <= self.fusion_boxes_max:
            raise ValueError(
                f"fusion_boxes_min, fusion_boxes_max: {self.fusion_boxes_min}, {self.fusion_boxes_max} are not in "
                "1 <= min <= max"
            )
        if not 0 <= self.fusion_inversion <= 1:
            raise ValueError(f"fusion_inversion: {self.fusion_inversion} is not in 0 <= share <= 1")

    @property
    def largest(self) -> float:
        """Largest edge of what the map is made of, as a share of the patch's."""
        return self.fusion_box_max if self.fusion_map == "boxes" else self.fusion_block_max


class VolumeFusion(PretextTask):
    """(Dice + cross-entropy) / 2 over the K + 1 classes of the fusion map."""

    Options: ClassVar = VolumeFusionOptions
    needs_tokens: ClassVar = False
    views: ClassVar = frozenset({"pair"})

    def __init__(self, network: nn.Module, context: PretextContext, options: VolumeFusionOptions) -> None:
        super().__init__(network, context, options)
        self.options = options
        if options.fusion_pair == "batch" and context.batch_size is not None:
            _require_two(context.batch_size)
        _, most = self._edges(context.patch_size)
        blocks = math.prod(edge // length for edge, length in zip(context.patch_size, most, strict=True))
        if options.fusion_map == "grid" and math.floor(options.fusion_foreground * blocks) < 1:
            raise PlanError(
                f"ctnet option fusion_block_max: the largest blocks leave {blocks} in a patch of "
                f"{list(context.patch_size)}, none of them foreground; lower it, or raise fusion_foreground"
            )
        encoder = network.encoder
        conv_op: type[nn.Module] = encoder.conv_op  # type: ignore[assignment, union-attr]
        self.head = conv_op(encoder.output_channels[0], options.fusion_classes + 1, 1)  # type: ignore[union-attr, index]

    def sample(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """``map`` (B, *patch) of 0..K, and per sub-volume s and channel ``low``, ``high``, ``gamma`` (B, 2, C),
        ``invert`` (B, C)."""
        batch, _, channels = views["pair"].shape[:3]
        if self.options.fusion_pair == "batch":
            _require_two(batch)
        maps = [self._map(views["pair"].shape[3:], generator) for _ in range(batch)]
        shape = (batch, 2, channels)
        return {
            "map": torch.stack(maps),
            "low": _uniform(shape, LOW_PERCENTILE, generator),
            "high": _uniform(shape, HIGH_PERCENTILE, generator),
            "gamma": _uniform(shape, GAMMA, generator),
            "invert": torch.rand((batch, channels), generator=generator) < self.options.fusion_inversion,
        }

    def _map(self, size: Sequence[int], generator: torch.Generator) -> Tensor:
        options = self.options
        least, most = self._edges(size)
        if options.fusion_map == "boxes":
            count = (options.fusion_boxes_min, options.fusion_boxes_max)
            return box_map(size, least, most, count, options.fusion_classes, generator)
        return grid_map(size, least, most, options.fusion_foreground, options.fusion_classes, generator)

    def _edges(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Smallest and largest edge of a block or box along each axis, in voxels."""
        least = [max(SMALLEST_BLOCK, round(self.options.fusion_block_min * edge)) for edge in size]
        return least, [max(low, round(self.options.largest * edge)) for low, edge in zip(least, size, strict=True)]

    def targets(self, views: Views, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``fused`` (B, C, *patch) and ``map`` (B, *patch), both on the views' device."""
        pair = views["pair"]
        if self.options.fusion_pair == "batch":  # before the intensities, so that a pair is inverted together
            pair = torch.stack([pair[:, 0], pair[:, 0].roll(1, dims=0)], 1)
        if self.options.fusion_intensity:
            pair = changed_intensity(pair, {name: value.to(pair.device) for name, value in draw.items()})
        foreground, background = pair[:, 0], pair[:, 1]
        classes = draw["map"].to(pair.device)
        fused = fuse(foreground, background, classes, self.options.fusion_classes)
        return {"fused": standardised(fused) if self.options.fusion_restandardise else fused, "map": classes}

    def forward(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and ``dice``, the mean over classes 1..K of the hard Dice in the batch."""
        logits = self.head(full_resolution_features(network, batch["fused"])).float()
        loss = (soft_dice_loss(logits, batch["map"]) + F.cross_entropy(logits, batch["map"])) / 2
        return {"loss": loss, "dice": hard_dice(logits.argmax(1), batch["map"], self.options.fusion_classes)}


def grid_map(
    size: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
    foreground: float,
    classes: int,
    generator: torch.Generator,
) -> Tensor:
    """A map (*size) of equal blocks: floor(foreground · blocks) of them of a class 1..K, the others and margins 0.

    The block's edges are drawn once, uniformly from ``least`` to ``most``; the grid starts at a random offset.
    """
    block = [_integer(low, high, generator) for low, high in zip(least, most, strict=True)]
    counts = [edge // length for edge, length in zip(size, block, strict=True)]
    offsets = [_integer(0, edge % length, generator) for edge, length in zip(size, block, strict=True)]
    blocks = math.prod(counts)
    chosen = torch.randperm(blocks, generator=generator)[: math.floor(foreground * blocks)]
    values = torch.zeros(blocks, dtype=torch.long)
    values[chosen] = torch.randint(1, classes + 1, (len(chosen),), generator=generator)
    tiles = values.view(*counts)
    for axis, length in enumerate(block):
        tiles = tiles.repeat_interleave(length, dim=axis)
    result = torch.zeros(*size, dtype=torch.long)
    result[tuple(slice(start, start + edge) for start, edge in zip(offsets, tiles.shape, strict=True))] = tiles
    return result


def box_map(
    size: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
    count: tuple[int, int],
    classes: int,
    generator: torch.Generator,
) -> Tensor:
    """A map (*size) of boxes of class 1..K: centres uniform, clipped at the border, later ones on top.

    How many is drawn uniformly from the two numbers of ``count``, a box's edges from ``least`` to ``most``.
    """
    boxes = []
    for _ in range(_integer(*count, generator)):
        edges = [_integer(low, high, generator) for low, high in zip(least, most, strict=True)]
        centres = [_integer(0, edge - 1, generator) for edge in size]
        starts = [centre - edge // 2 for centre, edge in zip(centres, edges, strict=True)]
        boxes.append((starts, edges, _integer(1, classes, generator)))
    return paint_boxes(size, boxes)


def paint_boxes(size: Sequence[int], boxes: Sequence[tuple[Sequence[int], Sequence[int], int]]) -> Tensor:
    """Paint boxes (starts, edges, class) into a map of zeros, in order; parts outside are cut off."""
    result = torch.zeros(*size, dtype=torch.long)
    for starts, edges, value in boxes:
        ends = [start + edge for start, edge in zip(starts, edges, strict=True)]
        result[tuple(slice(max(start, 0), max(end, 0)) for start, end in zip(starts, ends, strict=True))] = value
    return result


def fuse(foreground: Tensor, background: Tensor, classes: Tensor, highest: int) -> Tensor:
    """X = α · I_fg + (1 - α) · I_bg with α = classes / highest; images (B, C, *patch), classes (B, *patch)."""
    alpha = classes[:, None].to(foreground.dtype) / highest
    return alpha * foreground + (1 - alpha) * background


def changed_intensity(pair: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
    """Contrast, gamma and inversion of a pair (B, 2, C, *patch); the result lies in [0, 1].

    Contrast and gamma are each sub-volume's own; inversion is common to both, or it would give the fusion away.
    """
    flat = pair.flatten(3).float()
    low = _percentile(flat, draw["low"])
    high = _percentile(flat, draw["high"])
    curved = adaptive_contrast(flat, low, high) ** draw["gamma"][..., None]
    invert = draw["invert"][:, None, :, None]
    return torch.where(invert, 1 - curved, curved).view_as(pair)


def adaptive_contrast(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map [min, low] to [0, 0.1], [low, high] to [0.1, 0.9] and [high, max] to [0.9, 1], piecewise linearly.

    Args:
        values: (..., N).
        low, high: (..., 1), two percentiles of the values; where they coincide (air), the steps are flat, not NaN.
    """
    least, most = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    below = LOW_LEVEL * _share(values, least, low)
    between = LOW_LEVEL + (HIGH_LEVEL - LOW_LEVEL) * _share(values, low, high)
    above = HIGH_LEVEL + (1 - HIGH_LEVEL) * _share(values, high, most)
    return torch.where(values <= low, below, torch.where(values <= high, between, above))


def _share(values: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far values lie from start to end, 0..1; 1 where the two coincide."""
    length = end - start
    return torch.where(length > 0, (values - start) / length.clamp(min=torch.finfo(values.dtype).tiny), 1.0).clamp(0, 1)


def _percentile(values: Tensor, percentile: Tensor) -> Tensor:
    """Per-row percentile (0..100) of values (..., N): (..., 1), the nearest rank from below."""
    ordered = values.sort(dim=-1).values
    index = (percentile / 100 * (values.shape[-1] - 1)).long()
    return ordered.gather(-1, index[..., None])


def standardised(images: Tensor) -> Tensor:
    """z-score images (B, C, *patch) per sample and channel; flat ones become 0."""
    axes = tuple(range(2, images.ndim))
    mean = images.mean(axes, keepdim=True)
    return (images - mean) / images.std(axes, keepdim=True, correction=0).clamp(min=1e-8)


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - soft Dice of logits (B, K + 1, *patch) against target (B, *patch), mean over samples and all classes."""
    probabilities = logits.softmax(1).flatten(2)
    truth = F.one_hot(target.flatten(1), logits.shape[1]).transpose(1, 2).to(probabilities.dtype)
    overlap = (probabilities * truth).sum(-1)
    total = probabilities.sum(-1) + truth.sum(-1)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def hard_dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Mean Dice of classes 1..K over a batch of label maps; a class in neither map counts as 1."""
    scores = []
    for value in range(1, classes + 1):
        mine, theirs = predicted == value, target == value
        total = mine.sum() + theirs.sum()
        scores.append(torch.where(total > 0, 2 * (mine & theirs).sum() / total.clamp(min=1), 1.0))
    return torch.stack(scores).mean()


def _require_two(batch: int) -> None:
    if batch < 2:
        raise PlanError("ctnet option fusion_pair: batch needs 2 scans a batch; raise batch_size or use same")


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _uniform(shape: Sequence[int], limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(tuple(shape), generator=generator)
