"""Rotation prediction: by which multiple of 90° was the patch turned?

Follows the abstract of CTNet (Deng et al., Magnetic Resonance Letters 6(1):200226, 2026), which names rotation
prediction as one of two pretext tasks; the details are ours. Four classes turn about the one axis whose plane has
equal spacing (axial on isotropic brains, as in Swin UNETR's pretraining); ten classes (identity and three angles about
each axis) follow Taleb et al. 2020 and need isotropic spacing. Turns are exact (``rot90``): interpolation would leave
a fingerprint of the angle, and so would padding, mirroring or an empty patch, which never reach this task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.pretext.base import PretextContext, PretextTask, Views, whole_count

SPACING_TOLERANCE = 0.01
Turn = tuple[tuple[int, int], int]
"""Plane (two spatial axes) and number of quarter turns."""


@dataclass(frozen=True)
class RotationOptions:
    """``rotations``: number of classes, 4 (one plane) or 10 (identity and three angles about three axes)."""

    rotations: int = 4

    def __post_init__(self) -> None:
        if self.rotations not in (4, 10):
            raise ValueError(f"rotations: {self.rotations} is not 4 or 10")


class Rotation(PretextTask):
    """Cross-entropy over turns, from the mean of the transformer's tokens."""

    Options: ClassVar = RotationOptions
    needs_tokens: ClassVar = True
    trains_decoder = False
    views: ClassVar = frozenset({"inside"})

    def __init__(self, network: nn.Module, context: PretextContext, options: RotationOptions) -> None:
        super().__init__(network, context, options)
        self.turns = turns_for(context, options.rotations)
        self.crop = square_crop(context.inside_size, self.turns, _token_stride(network))
        if 0 in self.crop:
            raise PlanError(
                f"ctnet option pretext: rotation needs scans of at least one token per axis, they have "
                f"{list(context.inside_size)} voxels; leave it out: --set pretext.rotation=0"
            )
        dim: int = network.transformer.embed_dim  # type: ignore[union-attr, assignment]
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(self.turns)))

    def sample(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """``label`` (B,): the index of each sample's turn, uniform."""
        count = views["inside"].shape[0]
        return {"label": torch.randint(len(self.turns), (count,), generator=generator)}

    def targets(self, views: Views, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``turned`` (B, C, *crop) and ``label`` (B,), -100 (ignored) where a sample is not usable."""
        inside = centre_crop(views["inside"], self.crop)
        turned = torch.stack([turn(image, self.turns[int(k)]) for image, k in zip(inside, draw["label"], strict=True)])
        label = draw["label"].to(inside.device)
        return {"turned": turned, "label": label.masked_fill(~views["usable"].to(inside.device), -100)}

    def counted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The usable samples."""
        return (batch["label"] >= 0).sum()[None]

    def forward(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``loss`` and ``accuracy`` over the usable samples; both 0 if there is none."""
        features = network.convolutional_features(batch["turned"])  # type: ignore[operator]
        transformer = network.transformer
        tokens = transformer.encode(transformer.embed(features), features.shape[2:])  # type: ignore[union-attr, operator]
        return rotation_loss(self.head(tokens.mean(1)), batch["label"], whole_count(batch))


def rotation_loss(logits: Tensor, label: Tensor, count: Tensor | None = None) -> dict[str, Tensor]:
    """Cross-entropy of logits (B, R) against label (B,), ignoring -100, and the accuracy; sums over ``count``."""
    usable = label >= 0
    count = usable.sum().clamp(min=1) if count is None else count
    loss = F.cross_entropy(logits.float(), label, ignore_index=-100, reduction="sum") / count
    accuracy = ((logits.argmax(1) == label) & usable).sum() / count
    return {"loss": loss, "accuracy": accuracy.float(), "usable": usable.float().mean()}


def turn(image: Tensor, chosen: Turn) -> Tensor:
    """Turn an image (C, *size) exactly."""
    plane, quarters = chosen
    return torch.rot90(image, quarters, [axis + 1 for axis in plane])


def turns_for(context: PretextContext, rotations: int) -> list[Turn]:
    """The turn of each class.

    Raises:
        PlanError: If the spacing has no plane (4) or is not isotropic in 3d (10), or another number is asked for.
    """
    planes = [
        pair
        for pair in combinations(range(len(context.spacing)), 2)
        if abs(context.spacing[pair[0]] / context.spacing[pair[1]] - 1) <= SPACING_TOLERANCE
    ]
    if rotations == 4 and planes:
        plane = max(planes, key=lambda pair: _plane_rank(pair, context))
        return [(plane, quarters) for quarters in range(4)]
    if rotations == 10 and len(planes) == 3:
        return [(planes[0], 0), *((plane, quarters) for plane in planes for quarters in (1, 2, 3))]
    if rotations not in (4, 10):
        raise PlanError(f"ctnet option rotations: {rotations} is not 4 or 10")
    raise PlanError(
        f"ctnet option rotations: {rotations} classes need axes of equal spacing, the plan's are "
        f"{[round(value, 3) for value in context.spacing]} mm; "
        "leave the task out: --set pretext.rotation=0"
    )


def _plane_rank(plane: tuple[int, int], context: PretextContext) -> tuple[bool, bool, int]:
    sizes = [context.inside_size[axis] for axis in plane]
    return context.axial_axis not in plane, sizes[0] == sizes[1], min(sizes)


def square_crop(size: tuple[int, ...], turns: list[Turn], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The largest crop that turns into itself and that the token stage's strides divide."""
    turned_axes = sorted({axis for plane, quarters in turns if quarters for axis in plane})
    edge = min(size[axis] for axis in turned_axes)
    multiple = max(strides[axis] for axis in turned_axes)
    edge = edge // multiple * multiple
    return tuple(
        edge if axis in turned_axes else length // strides[axis] * strides[axis] for axis, length in enumerate(size)
    )


def centre_crop(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """The central ``size`` voxels of images (B, C, *larger)."""
    for axis, length in enumerate(size, start=2):
        images = images.narrow(axis, (images.shape[axis] - length) // 2, length)
    return images


def _token_stride(network: nn.Module) -> tuple[int, ...]:
    stride = 1024
    return tuple(stride // cells for cells in network.token_grid([stride] * network.transformer.dimensions))  # type: ignore[operator, union-attr]
