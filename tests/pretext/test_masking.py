"""Block masks, cells and the EMA teacher, each against arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ctnet_nnunet.pretext.masked_features import FeatureTeacher, block_mask, cells, cosine_momentum
from tests.architectures.plan_table import Plan
from tests.pretext.units import PLANS, generator, network_of, views_of

over_plans = pytest.mark.parametrize("plan", PLANS, ids=[plan.name for plan in PLANS])


@pytest.mark.parametrize(("grid", "ratio", "block", "hidden"), [
    ((6, 6, 6), 0.6, 2, 128),    # round(0.6 · 27) = 16 blocks of 8
    ((4, 4, 4), 0.6, 2, 38),     # grids below 6 hide single tokens: round(38.4)
    ((3, 8, 8), 0.6, 2, 116),    # 3·4·4 blocks of 1·2·2: round(28.8) = 29 of 4
    ((8, 8), 0.5, 2, 32),
    ((12, 12, 12), 0.25, 4, 7 * 64),  # round(6.75) of 27
    ((6, 6, 6), 0.6, 1, 130),
    ((5, 5), 0.0, 2, 0),
    ((1, 1), 0.4, 2, 0),
])  # fmt: skip
def test_exactly_the_rounded_share_is_hidden(grid: tuple[int, ...], ratio: float, block: int, hidden: int) -> None:
    for seed in range(5):
        mask = block_mask(grid, ratio, block, generator(seed))
        assert tuple(mask.shape) == grid
        assert int(mask.sum()) == hidden


def test_blocks_are_hidden_whole() -> None:
    mask = block_mask((8, 6, 3), 0.5, 2, generator())
    blocks = mask.view(4, 2, 3, 2, 3).permute(0, 2, 4, 1, 3).reshape(36, 4)
    assert set(blocks.sum(1).tolist()) == {0, 4}
    assert int(blocks.any(1).sum()) == 18


def test_a_block_that_does_not_fit_is_cut_at_the_border() -> None:
    mask = block_mask((7, 7), 0.5, 2, generator(1))
    edges = [range(2), range(2, 4), range(4, 6), range(6, 7)]
    for rows in edges:
        for columns in edges:
            values = {bool(mask[row, column]) for row in rows for column in columns}
            assert len(values) == 1


def test_every_token_is_hidden_at_its_share() -> None:
    draw = generator(2)
    share = torch.stack([block_mask((6, 6), 0.6, 2, draw) for _ in range(600)]).float().mean(0)
    wanted = 5 / 9  # round(0.6 · 9) of 9 blocks
    assert (share - wanted).abs().max() < 5 * (wanted * (1 - wanted) / 600) ** 0.5


@pytest.mark.parametrize(("shape", "cell"), [
    ((2, 1, 4, 4, 4), (2, 2, 2)), ((1, 3, 4, 6, 8), (2, 3, 4)), ((2, 2, 6, 4), (3, 2)), ((1, 1, 4, 4, 4), (4, 4, 4)),
])  # fmt: skip
def test_cells_against_a_naive_loop(shape: tuple[int, ...], cell: tuple[int, ...]) -> None:
    image = torch.arange(math.prod(shape)).view(*shape)
    size = shape[2:]
    naive = []
    grid = [range(0, length, edge) for length, edge in zip(size, cell, strict=True)]
    for sample in range(shape[0]):
        tokens = [
            image[(sample, slice(None), *(slice(a, a + e) for a, e in zip(corner, cell, strict=True)))].flatten()
            for corner in torch.cartesian_prod(*[torch.tensor(list(axis)) for axis in grid])
            .view(-1, len(cell))
            .tolist()
        ]
        naive.append(torch.stack(tokens))
    assert torch.equal(cells(image, cell), torch.stack(naive))


@over_plans
@torch.no_grad()
def test_the_teacher_computes_what_the_network_does(plan: Plan) -> None:
    network = network_of(plan).eval()
    image = views_of(plan)["augmented"]
    expected = network.transformer.embed(network.convolutional_features(image))
    assert torch.equal(FeatureTeacher(network)(image), expected)


@over_plans
@torch.no_grad()
def test_a_step_of_the_moving_average_by_hand(plan: Plan) -> None:
    network, other = network_of(plan, seed=0), network_of(plan, seed=1)
    teacher = FeatureTeacher(network)
    before = [parameter.clone() for parameter in teacher.parameters()]
    followed = FeatureTeacher(other)
    teacher.follow(other, momentum=0.9)
    for was, now, online in zip(before, teacher.parameters(), followed.parameters(), strict=True):
        assert torch.allclose(now, 0.9 * was + 0.1 * online, atol=1e-7)
    teacher.follow(other, momentum=0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), followed.parameters(), strict=True))


@over_plans
def test_the_teacher_is_a_copy_without_gradients(plan: Plan) -> None:
    network = network_of(plan)
    teacher = FeatureTeacher(network)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not [parameter for parameter in teacher.parameters() if parameter.data_ptr() in own]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(views_of(plan)["augmented"].requires_grad_()).requires_grad


@pytest.mark.parametrize(("start", "progress", "momentum"), [
    (0.996, 0.0, 0.996), (0.996, 0.5, 0.998), (0.996, 1.0, 1.0), (0.9, 1 / 3, 1 - 0.1 * 0.75), (0.996, 1.7, 1.0),
    (0.996, -0.1, 0.996),
])  # fmt: skip
def test_the_momentum_rises_along_half_a_cosine(start: float, progress: float, momentum: float) -> None:
    assert cosine_momentum(start, progress) == pytest.approx(momentum, abs=1e-12)
