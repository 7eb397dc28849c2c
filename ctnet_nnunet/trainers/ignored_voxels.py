"""Cross-entropy with an ignore label over several processes: voxels that count weigh the same wherever they are.

Stock divides each process's sum by that process's own number of voxels that are not ignored. With sparse annotations
those numbers differ, and the mean over processes is no longer the loss of the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from ctnet_nnunet.ranks import expected_count


def count_over_ranks(loss: nn.Module, labels: LabelManager) -> None:
    """Change stock's Dice and cross-entropy, bare or under deep supervision, in place.

    Args:
        loss: What stock's ``_build_loss`` gave.
        labels: The dataset's, with an ignore label.
    """
    of_one_scale: Any = getattr(loss, "loss", loss)
    scaled = _ScaledCrossEntropy(of_one_scale.ce)
    of_one_scale.ce = scaled

    def measure(module: nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        target = arguments[1]
        counted = 1 - target[:, -1].float() if labels.has_regions else (target != labels.ignore_label).float()
        scaled.measure(counted)

    # A hook, because where nothing counts stock leaves cross-entropy out, and every rank must take part in counting.
    of_one_scale.register_forward_pre_hook(measure)


class _ScaledCrossEntropy(nn.Module):
    """Cross-entropy, times this process's voxels that count over those that its share of the batch has on average."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = torch.ones(())

    def measure(self, counted: Tensor) -> None:
        """Take the voxels (B, …) of a batch, 1 where one counts."""
        number = counted.sum()[None]
        self.scale = (number / expected_count(number, len(counted)))[0]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.inner(logits, target)
        return loss * self.scale
