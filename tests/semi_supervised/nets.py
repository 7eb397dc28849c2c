"""Small networks in float64 whose derivatives can be trusted to the last digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctnet_nnunet.semi_supervised.labels import negative_log_likelihood
from ctnet_nnunet.semi_supervised.reciprocal import Losses, ReciprocalOptions, ReciprocalStep

CLASSES = 3


def net(seed: int, channels: int = 1, classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two convolutions over 2d patches; smooth, so that a first-order estimate can be judged."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, classes, 3, padding=1)
    ).to(dtype)  # fmt: skip


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x_l (2, 1, 8, 8), y_l (2, 8, 8) and x_u (2, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    x_l, x_u = torch.randn(2, 2, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x_l, torch.randint(CLASSES, (2, 8, 8), generator=generator), x_u


def plain_losses(regions: bool = False) -> Losses:
    """Cross-entropy everywhere, as published."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return negative_log_likelihood(logits, target, regions)

    return Losses(teacher=loss, student=loss, pseudo=loss)


def step_of(
    student: nn.Module,
    teacher: nn.Module,
    rate: float = 0.1,
    teacher_rate: float = 0.1,
    options: ReciprocalOptions | None = None,
    momentum: float = 0.0,
    **more: object,
) -> ReciprocalStep:
    """The step with SGD for both."""
    return ReciprocalStep(
        student,
        teacher,
        torch.optim.SGD(student.parameters(), rate, momentum=momentum),
        torch.optim.SGD(teacher.parameters(), teacher_rate, momentum=momentum),
        more.pop("losses", plain_losses()),  # type: ignore[arg-type]
        options,
        **more,  # type: ignore[arg-type]
    )


def weights(network: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def gradients(network: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
