"""How sure an ensemble is, voxel by voxel and label by label; slab by slab, so that memory stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def voxel_entropy(logits: Tensor, regions: bool) -> Tensor:
    """Entropy (*grid) of the ensemble of logits (heads, *grid), 0 (certain) to 1 (all labels alike).

    Regions are not exclusive: theirs is the greatest entropy of any region's yes or no.
    """
    return torch.stack([_slab_entropy(logits[:, index].float(), regions) for index in range(logits.shape[1])])


def label_entropy(logits: Tensor, labels: NDArray[Any], regions: bool) -> dict[int, float]:
    """Mean of :func:`voxel_entropy` over each label's voxels (background left out); ``labels`` is (*grid)."""
    sums, counts = np.zeros(int(labels.max()) + 1), np.zeros(int(labels.max()) + 1)
    for index in range(logits.shape[1]):
        slab = labels[index].ravel()
        if slab.any():
            entropy = _slab_entropy(logits[:, index].float(), regions).numpy().ravel()
            sums += np.bincount(slab, entropy, len(sums))
            counts += np.bincount(slab, minlength=len(sums))
    return {label: float(sums[label] / counts[label]) for label in range(1, len(sums)) if counts[label]}


def fold_disagreement(fold_labels: Sequence[NDArray[Any]], labels: NDArray[Any]) -> Tensor:
    """Share (*grid) of the folds whose label is not the ensemble's."""
    other = np.zeros(labels.shape, dtype=np.float32)
    for fold in fold_labels:
        other += fold != labels
    return torch.from_numpy(other / len(fold_labels))


def _slab_entropy(logits: Tensor, regions: bool) -> Tensor:
    if regions:
        yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
        return (-(yes.exp() * yes + no.exp() * no) / math.log(2)).amax(0)
    log_p = torch.log_softmax(logits, dim=0)
    return -(log_p.exp() * log_p).sum(0) / math.log(len(logits))
