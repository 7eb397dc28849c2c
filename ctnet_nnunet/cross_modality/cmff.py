"""The loss of cross-modality feature fusion: the mean over the fused output and the two branches' own.

Zhang et al., Pattern Recognition 110:107562 (2021): of each, a Dice loss with squared sums over the foreground alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMOOTH = 1e-5


class PaperDice(nn.Module):
    """1 − mean over samples and foreground classes of (2Σpt + ε) / (Σp² + Σt² + ε), ε = 1e-5.

    Where a class is absent the loss is near 1 unless its probability is near 0 everywhere: this is the published one.

    Args:
        regions: Targets are 0/1 maps of regions, all of them foreground; else class numbers with 0 as background.
        ignore_label: Voxels with this class do not count. With regions, an ignored voxel is 1 in the target's
            additional last channel.
    """

    def __init__(self, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, K, *patch) and target (B, 1, *patch), or with regions (B, K or K + 1, *patch) → a scalar."""
        probabilities, truth, counted = self._parts(logits.float(), target)
        if counted is not None:
            probabilities, truth = probabilities * counted, truth * counted
        space = tuple(range(2, logits.ndim))
        both = (probabilities * truth).sum(space)
        each = probabilities.square().sum(space) + truth.square().sum(space)
        return 1 - ((2 * both + SMOOTH) / (each + SMOOTH)).mean()

    def _parts(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Probabilities and truth of the foreground, and where they count (None: everywhere)."""
        counted = None
        if self.regions:
            if self.ignore_label is not None:
                counted, target = 1 - target[:, -1:].float(), target[:, :-1]
            return logits.sigmoid(), target.float(), counted
        if self.ignore_label is not None:
            counted = (target != self.ignore_label).float()
        classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
        return logits.softmax(1)[:, 1:], (target == classes).float(), counted


class MeanOverOutputs(nn.Module):
    """The mean of a loss over several outputs with one target.

    Args:
        loss: Of logits and target.

    Attributes:
        each: The loss of every output, the last time.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.each: list[float] = []

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """Outputs (fused, a's, b's), or the fused alone, and the target, alone or in a list of one → a scalar."""
        target = target if isinstance(target, Tensor) else target[0]
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        losses = torch.stack([self.loss(output, target) for output in outputs])
        self.each = losses.detach().tolist()
        return losses.mean()
