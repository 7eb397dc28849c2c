"""The transformer residual: its position table, its order of steps, its size, and where in the encoder it goes."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ctnet_nnunet.architectures.ctnet import choose_transformer_stage, cumulative_strides
from ctnet_nnunet.architectures.transformer import TransformerOptions, TransformerResidual
from tests.architectures.plan_table import SMALL, halvings


def residual(conv_op: type[nn.Module] = nn.Conv3d, **changes: float) -> TransformerResidual:
    torch.manual_seed(0)
    return TransformerResidual(6, conv_op, TransformerOptions(**{**vars(SMALL), **changes}))


@pytest.mark.parametrize(("conv_op", "grid"), [(nn.Conv3d, (3, 3, 3)), (nn.Conv2d, (3, 3))])
@torch.no_grad()
def test_the_position_table_on_its_own_grid_is_itself(conv_op: type[nn.Module], grid: tuple[int, ...]) -> None:
    module = residual(conv_op)
    position = module.position(grid)
    assert tuple(position.shape) == (1, prod(grid), SMALL.embed_dim)
    assert torch.equal(position, module.position_table.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_on_another_grid_it_is_interpolated_and_axes_keep_their_order() -> None:
    module = residual()
    ramp = torch.arange(3.0).view(1, 1, 3, 1, 1)  # rises along the first axis alone
    module.position_table.copy_(ramp.expand_as(module.position_table))
    on_grid = module.position((6, 4, 5)).transpose(1, 2).reshape(1, -1, 6, 4, 5)
    assert on_grid.std(dim=(3, 4)).max() < 1e-6
    along = on_grid[0, 0, :, 0, 0]
    assert (along.diff() >= 0).all()
    assert (float(along[0]), float(along[-1])) == pytest.approx((0.0, 2.0))


@torch.no_grad()
def test_the_steps_in_sequence_are_the_forward_pass() -> None:
    module = residual().eval()
    features = torch.randn(2, 6, 4, 3, 5)
    tokens = module.embed(features)
    by_hand = module.residual(module.encode(tokens, (4, 3, 5)), (4, 3, 5))
    assert torch.equal(module(features), by_hand)
    # Token n is the voxel n of the grid in row-major order.
    assert torch.allclose(tokens[1, 1 * 15 + 2 * 5 + 3], module.embedding(features)[1, :, 1, 2, 3])


@torch.no_grad()
def test_attention_equals_a_naive_softmax() -> None:
    block = residual().blocks[1]
    attention, tokens = block.attention, torch.randn(2, 7, SMALL.embed_dim)
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    width = SMALL.embed_dim // SMALL.heads
    heads = []
    for head in range(SMALL.heads):
        part = slice(head * width, (head + 1) * width)
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / width**0.5, dim=-1)
        heads.append(weights @ value[..., part])
    assert torch.allclose(attention(tokens), attention.projection(torch.cat(heads, -1)), atol=1e-6)


@torch.no_grad()
def test_without_position_tokens_could_be_permuted_and_with_it_they_cannot() -> None:
    module = residual().eval()
    tokens, order = torch.randn(1, 27, SMALL.embed_dim), torch.randperm(27)
    assert not torch.allclose(module.encode(tokens[:, order], (3, 3, 3)), module.encode(tokens, (3, 3, 3))[:, order])
    module.position_table.zero_()
    permuted = module.encode(tokens[:, order], (3, 3, 3))
    assert torch.allclose(permuted, module.encode(tokens, (3, 3, 3))[:, order], atol=1e-5)


@torch.no_grad()
def test_the_residual_starts_at_its_scale() -> None:
    features = torch.randn(4, 6, 5, 5, 5)
    small, large = residual(residual_scale=0.1)(features), residual(residual_scale=1.0)(features)
    assert torch.allclose(small * 10, large, atol=1e-5)
    assert residual(residual_scale=0.0)(features).abs().max() == 0


def test_drop_path_rises_over_the_blocks() -> None:
    blocks = residual(depth=4, drop_path=0.3).blocks
    rates = [0.0 if isinstance(block.drop_path, nn.Identity) else block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert len(residual(depth=0).blocks) == 0


def test_the_counted_size_grows_with_every_part() -> None:
    base = residual().feature_map_size((4, 4, 4))
    assert residual().feature_map_size((8, 4, 4)) == 2 * base
    assert residual(depth=3).feature_map_size((4, 4, 4)) > base
    assert residual(mlp_ratio=4.0).feature_map_size((4, 4, 4)) > base
    assert residual(depth=0).feature_map_size((4, 4, 4)) == 64 * (SMALL.embed_dim + 6)


@pytest.mark.parametrize(("embed_dim", "heads"), [(10, 3), (12, 0), (12, -1)])
def test_options_that_do_not_divide_are_refused(embed_dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"embed_dim={embed_dim} is not a multiple of heads={heads}"):
        TransformerOptions(embed_dim=embed_dim, heads=heads)


def test_linear_layers_start_as_in_the_literature() -> None:
    module = residual(embed_dim=48, heads=3)
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 4 * SMALL.depth
    assert all(layer.bias.abs().max() == 0 for layer in linear)
    assert all(float(layer.weight.std()) == pytest.approx(0.02, rel=0.15) for layer in linear)
    assert float(F.layer_norm(module.position_table, module.position_table.shape).std()) > 0


@pytest.mark.parametrize(("strides", "patch", "stage"), [
    (halvings(3, 4), (96, 96, 96), 4),        # 6³ tokens at stride 16, the plan of methods/ctnet.md §3
    (halvings(3, 5), (160, 128, 128), 4),     # the fifth halving would be stride 32
    (halvings(3, 4), (48, 48, 48), 4),        # 27 tokens are enough
    (halvings(3, 4), (32, 48, 48), 3),        # 18 are not
    (halvings(3, 4), (16, 16, 16), 2),        # 1, then 8: two stages earlier
    (halvings(3, 1), (4, 4, 4), 0),           # never below the first stage
    (halvings(3, 5), (256, 256, 256), 4),     # 4096 tokens are not more than 4096
    (halvings(3, 5), (288, 256, 256), 5),     # 4608 are
    (halvings(3, 4), (512, 512, 512), 4),     # there is no later one
    (halvings(2, 6), (1088, 1088), 5),        # 68² tokens
    ([[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], (48, 160, 128), 4),  # (6, 10, 8)
    ([[4, 4, 4], [5, 5, 5]], (60, 60, 60), 0),  # a first stage of its own stride
    ([[32, 32], [2, 2]], (256, 256), 0),        # stride 16 was never there: the first
])  # fmt: skip
def test_the_stage_follows_the_rule(strides: list[list[int]], patch: tuple[int, ...], stage: int) -> None:
    assert choose_transformer_stage(strides, patch) == stage


def test_cumulative_strides_by_hand() -> None:
    assert cumulative_strides([[1, 1, 1], [1, 2, 2], [2, 2, 2]]) == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert all(type(value) is int for row in cumulative_strides([[1, 1], [2, 2]]) for value in row)
