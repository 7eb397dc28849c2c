"""The step of reciprocal learning to measure, beside the supervised step of the same network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctnet_nnunet.semi_supervised.labels import Recomputed
from ctnet_nnunet.semi_supervised.reciprocal import Losses, ReciprocalOptions, ReciprocalStep

# Name in the table → form of the feedback, and whether the teacher's activations are computed again.
Feedback = Literal["gradient", "finite_difference"]
RECIPROCAL: dict[str, tuple[Feedback, bool]] = {
    "reciprocal, gradient": ("gradient", False),
    "reciprocal, finite difference": ("finite_difference", False),
    "reciprocal, finite difference, teacher recomputed": ("finite_difference", True),
}


def reciprocal_step(
    subject: str,
    student: nn.Module,
    teacher: nn.Module,
    image: Tensor,
    loss: Any,
    targets: list[Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
    compiled: bool,
) -> Callable[[], None]:
    """One iteration with AdamW for both networks, as many unlabelled images as labelled ones.

    Args:
        subject: One of ``RECIPROCAL``.
        student, teacher: Networks of one plan, with deep supervision.
        image: Labelled images (B, C, *patch); the unlabelled ones are made like them.
        loss: nnU-Net's, with deep supervision around it.
        targets: Label maps of every resolution.
        autocast: Makes a context for the forward passes.
        compiled: Both networks are compiled.
    """
    feedback, recomputed = RECIPROCAL[subject]
    unlabelled = torch.randn_like(image)
    of_student, of_teacher = (torch.optim.AdamW(network.parameters(), lr=1e-4) for network in (student, teacher))
    if compiled:
        student, teacher = torch.compile(student), torch.compile(teacher)  # type: ignore[assignment]
    if recomputed:
        teacher = Recomputed(teacher, autocast)

    def at_full_resolution(logits: Tensor, target: list[Tensor]) -> Tensor:
        value: Tensor = loss.loss(logits, target[0])
        return value

    def pseudo(logits: Tensor, labels: Tensor) -> Tensor:
        return at_full_resolution(logits, [labels[:, None]])

    losses, options = Losses(loss, at_full_resolution, pseudo), ReciprocalOptions(feedback=feedback)
    iteration = ReciprocalStep(
        student, teacher, of_student, of_teacher, losses, options, clip_norm=12, autocast=autocast
    )

    def step() -> None:
        iteration(image, targets, unlabelled)

    return step
