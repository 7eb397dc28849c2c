"""What the tests of the pretext tasks share: a small network, its context, views without randomness of their own."""

from __future__ import annotations

from typing import Any

import torch

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.pretext.base import PretextContext
from tests.architectures.plan_table import SMALL, Plan, halvings

CUBE = Plan("cube", (16, 16, 16), halvings(3, 2), 2, (4, 4, 4))
TWO_CHANNELS = Plan("two channels", (16, 16, 16), halvings(3, 2), 2, (4, 4, 4), channels=2)
RESIDUAL = Plan("residual", (16, 16, 16), halvings(3, 2), 2, (4, 4, 4), residual=True)
FLAT = Plan("2d", (32, 32), halvings(2, 2), 2, (8, 8))
PLANS = [CUBE, TWO_CHANNELS, RESIDUAL, FLAT]


def network_of(plan: Plan, seed: int = 0) -> CTNet:
    torch.manual_seed(seed)
    return plan.network(SMALL)


def context_of(plan: Plan, **changes: Any) -> PretextContext:
    values: dict[str, Any] = {
        "patch_size": plan.patch,
        "inside_size": plan.patch,
        "spacing": (1.0,) * plan.dimensions,
        "axial_axis": 0 if plan.dimensions == 3 else None,
        "input_channels": plan.channels,
    }
    return PretextContext(**{**values, **changes})


def views_of(plan: Plan, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, plan.channels, *plan.patch)
    return {
        "augmented": torch.randn(shape, generator=generator),
        "inside": torch.randn(shape, generator=generator),
        "usable": torch.ones(batch, dtype=torch.bool),
    }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
