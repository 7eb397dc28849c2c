"""The generators over a whole image: tiles join to what a pointwise generator makes of the image at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctnet_nnunet.architectures.cross_modality import CMFFNet, PaperBranch
from ctnet_nnunet.inference.synthesis import Synthesiser


class Pointwise:
    """Makes two sequences of one, and one of two, voxel by voxel."""

    def a_to_b(self, a: Tensor) -> Tensor:
        return torch.cat([a + 1, 3 * a], 1)

    def b_to_a(self, b: Tensor) -> Tensor:
        return b.mean(1, keepdim=True)


def synthesiser(patch: tuple[int, ...], within: bool) -> Synthesiser:
    network = CMFFNet((PaperBranch(1, 2, 2), PaperBranch(2, 2, 2)), [[1], [2, 0]], 2)
    configuration = SimpleNamespace(use_mask_for_norm=[within] * 3)
    model: Any = SimpleNamespace(network=network, configuration=configuration)
    translators: Any = Pointwise()
    return Synthesiser(model, translators, patch, torch.device("cpu"))


@pytest.mark.parametrize("patch", [(4, 6, 8), (16, 16, 16), (6, 8)])
def test_tiles_join_and_channels_land_where_they_belong(patch: tuple[int, ...]) -> None:
    """Patches smaller and larger than the image, and slices of a 2d plan; pair b is channels 2 and 0, in this order."""
    image = torch.randn(3, 7, 9, 11)
    made = synthesiser(patch, within=False).completed(image, "b")
    torch.testing.assert_close(made[2], image[1] + 1)
    torch.testing.assert_close(made[0], 3 * image[1])
    assert torch.equal(made[1], image[1])
    back = synthesiser(patch, within=False).completed(image, "a")
    torch.testing.assert_close(back[1], (image[2] + image[0]) / 2)
    assert torch.equal(back[[0, 2]], image[[0, 2]])


def test_outside_the_body_stays_zero_where_the_plan_normalises_inside() -> None:
    image = torch.randn(3, 7, 9, 11)
    image[:, :2] = 0
    assert not synthesiser((4, 6, 8), within=True).completed(image, "b")[2, :2].any()
    assert synthesiser((4, 6, 8), within=False).completed(image, "b")[2, :2].all()
