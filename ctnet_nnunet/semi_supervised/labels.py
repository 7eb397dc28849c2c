"""Hard pseudo-labels out of logits, and how likely they are under logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

HowToLabel = Literal["argmax", "sample"]


def full_resolution(output: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The logits (B, C, *patch) of a network's output, which under deep supervision is a list with these first."""
    return output if isinstance(output, Tensor) else output[0]


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision is too coarse for a mean over a million voxels; float32 and float64 stay."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def pseudo_labels(
    logits: Tensor, how: HowToLabel = "argmax", regions: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Hard labels without a gradient.

    Args:
        logits: (B, C, *patch).
        how: ``argmax``: the most likely label; ``sample``: drawn from the predicted distribution, voxel by voxel.
        regions: The channels are overlapping regions with a sigmoid each, not classes under one softmax.
        generator: Of ``sample``; None is torch's global one of the logits' device.

    Returns:
        Class numbers (B, *patch), int64; with ``regions`` whether a voxel is inside: (B, C, *patch), bool.
    """
    logits = at_least_float32(logits.detach())
    if regions:
        threshold = 0.5 if how == "argmax" else torch.empty_like(logits).uniform_(generator=generator)
        return logits.sigmoid() > threshold
    if how == "sample":
        # Gumbel's trick: with -log(Exponential) noise the argmax is distributed as the softmax.
        logits = logits - torch.empty_like(logits).exponential_(generator=generator).log()
    return logits.argmax(1)


def negative_log_likelihood(logits: Tensor, labels: Tensor, regions: bool = False) -> Tensor:
    """Mean over voxels (and regions) of -log P(labels): cross-entropy, for regions the binary one; a scalar."""
    logits = at_least_float32(logits)
    if regions:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def label_shares(labels: Tensor, channels: int, regions: bool = False) -> list[float]:
    """Share of the voxels that got each class (they sum to 1) or lie in each region."""
    if regions:
        return labels.float().mean(dim=[0, *range(2, labels.ndim)]).tolist()
    return (torch.bincount(labels.flatten(), minlength=channels) / labels.numel()).tolist()


class Recomputed(nn.Module):
    """A network whose activations are not kept but computed again in the backward pass: a third more time for memory.

    The second pass sees the same dropout, because the random state is kept; batch norm's running statistics are
    updated twice.

    Args:
        network: What is computed twice.
        autocast: Makes the context of both passes. torch opens its own autocast again in the second one, but not what
            else a context of ours does, and the two passes must compute the same in the same types.
    """

    def __init__(self, network: nn.Module, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        output: Tensor | list[Tensor] = checkpoint(self._in_context, image, use_reentrant=False)
        return output

    def _in_context(self, image: Tensor) -> Tensor | list[Tensor]:
        with self.autocast():
            output: Tensor | list[Tensor] = self.network(image)
        return output
