"""Both tasks together learn two patches: rotation accuracy 1.0, and the masked loss more than halves."""

from __future__ import annotations

import torch

from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextModel, build_pretext
from tests.architectures.plan_table import Plan, halvings
from tests.pretext.units import context_of, generator

PLAN = Plan("overfit", (16, 16, 16), halvings(3, 2), 2, (4, 4, 4), features=[8, 12, 16])
WIDTH = TransformerOptions(embed_dim=24, depth=2, heads=3, mlp_ratio=2.0, drop_path=0.0, reference_grid=4)


def two_patches() -> dict[str, torch.Tensor]:
    """Smooth blobs off the centre: neither patch looks the same from any two sides."""
    axis = torch.linspace(-1, 1, 16)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    first = torch.exp(-8 * ((y + 0.5) ** 2 + (x - 0.2) ** 2)) - torch.exp(-8 * ((z - 0.3) ** 2 + (x + 0.5) ** 2))
    second = torch.sin(3 * x + 1) * torch.exp(-((y - 0.6) ** 2)) + z
    image = torch.stack([(patch - patch.mean()) / patch.std() for patch in (first, second)])[:, None]
    return {"augmented": image, "inside": image, "usable": torch.ones(2, dtype=torch.bool)}


@torch.no_grad()
def evaluated(model: PretextModel, views: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Rotation accuracy over both patches at all four turns, and the masked loss over ten fixed masks."""
    rotation, masked = model.tasks["rotation"], model.tasks["masked_features"]
    correct = [
        float(rotation(model.network, rotation.targets(views, {"label": torch.tensor([k, k])}))["accuracy"])
        for k in range(4)
    ]
    masks = generator(100)
    losses = [
        float(masked(model.network, masked.targets(views, masked.sample(views, masks)))["loss"]) for _ in range(10)
    ]
    return sum(correct) / 4, sum(losses) / 10


def test_two_patches_are_learned() -> None:
    torch.manual_seed(0)
    network = PLAN.network(WIDTH)
    model = build_pretext(
        PRETEXTS, network, context_of(PLAN), {"rotation": 1.0, "masked_features": 1.0}, {"mask_ratio": 0.5}
    )
    model.before_training()
    views = two_patches()
    accuracy_before, loss_before = evaluated(model, views)
    assert accuracy_before < 1.0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    draws, steps = generator(1), 150
    for step in range(steps):
        optimizer.zero_grad()
        model(model.prepare(views, draws))["loss"].backward()
        optimizer.step()
        model.after_step(step / steps)
    accuracy, loss = evaluated(model, views)
    assert accuracy == 1.0
    assert loss < 0.5 * loss_before
