"""Mean teacher, the usual reference: an averaged copy of the student whose predictions the student must agree with.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780; for segmentation with the
numbers of Yu et al., "Uncertainty-aware Self-ensembling Model", MICCAI 2019, arXiv:1907.07034, without its uncertainty.
The teacher's weights are a moving average of the student's; it sees the unlabelled patches with noise added, and the
mean squared difference of the two predictions joins the student's loss with a weight that rises over the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ctnet_nnunet.semi_supervised.labels import at_least_float32, full_resolution


@dataclass(frozen=True)
class MeanTeacherOptions:
    """Attributes:
    consistency: Weight of the consistency behind its ramp-up.
    consistency_rampup: Share of the training, 0..1, in which it rises as exp(-5(1 - t)²).
    ema_decay: α of the average; at iteration n it is at most 1 - 1/(n + 1), so that the start is forgotten quickly.
    teacher_noise: Standard deviation of the noise on the teacher's images (which are z-scored), cut at twice that.
    """

    consistency: float = 0.1
    consistency_rampup: float = 0.4
    ema_decay: float = 0.99
    teacher_noise: float = 0.1

    def __post_init__(self) -> None:
        if self.consistency < 0 or self.teacher_noise < 0:
            raise ValueError("consistency and teacher_noise: 0 or more")
        if not 0 <= self.consistency_rampup <= 1:
            raise ValueError(f"consistency_rampup={self.consistency_rampup}: a share of the training, 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: 0 or more and below 1")


class MeanTeacher:
    """The averaged teacher of a student, and what the student's loss gains from it.

    Args:
        student: The bare network, without wrappers; its parameters are followed, its buffers copied.
        options: See :class:`MeanTeacherOptions`.
        regions: The logits are regions under a sigmoid each.
    """

    def __init__(self, student: nn.Module, options: MeanTeacherOptions | None = None, regions: bool = False) -> None:
        self.options = options or MeanTeacherOptions()
        self.regions = regions
        self.average = AveragedModel(student, avg_fn=_moving_average(self.options.ema_decay))
        self.average.requires_grad_(False)

    @property
    def teacher(self) -> nn.Module:
        """The network with the averaged weights."""
        module: nn.Module = self.average.module
        return module

    def weight(self, progress: float) -> float:
        """The consistency's weight when ``progress`` (0..1) of the training is done."""
        rampup = self.options.consistency_rampup
        done = 1.0 if rampup == 0 else min(progress / rampup, 1.0)
        return self.options.consistency * math.exp(-5 * (1 - done) ** 2)

    def consistency(self, student: Callable[[Tensor], Tensor | list[Tensor]], unlabelled: Tensor) -> Tensor:
        """Mean squared difference of the predicted probabilities, with a gradient for the student alone; a scalar.

        Args:
            student: The network as it is called in training (under DistributedDataParallel, compiled).
            unlabelled: (B, C, *patch).
        """
        scale = self.options.teacher_noise
        noise = (scale * torch.randn_like(unlabelled)).clamp(-2 * scale, 2 * scale)
        with torch.no_grad():
            wanted = self._probabilities(self.teacher(unlabelled + noise))
        return (self._probabilities(student(unlabelled)) - wanted).square().mean()

    def _probabilities(self, output: Tensor | list[Tensor]) -> Tensor:
        logits = at_least_float32(full_resolution(output))
        return logits.sigmoid() if self.regions else logits.softmax(1)

    def restart(self, student: nn.Module) -> None:
        """Begin the average anew with the student as it is, for weights that came after the construction."""
        self.teacher.load_state_dict(student.state_dict())
        self.average.n_averaged.zero_()

    def after_step(self, student: nn.Module) -> None:
        """Follow the student, behind each of its steps."""
        self.average.update_parameters(student)


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """``avg_fn`` of torch's AveragedModel."""

    def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        bound = 1 - 1 / (float(count) + 1)
        return averaged.lerp(current, 1 - min(bound, decay))

    return average
