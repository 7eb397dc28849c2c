"""Weights carried between networks of different plans: what the adaptations preserve, and what counts as what."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import RESENC, UNET, Workload, architecture_of
from ctnet_nnunet.checkpoints import HEADS
from ctnet_nnunet.weight_transfer import (
    Transfer,
    fitted_kernel,
    resized_table,
    spread_channels,
    transfer_weights,
    upsampling_kernel,
)

SMALL = (16, 16, 16)


def _network(subject: str = UNET, size: tuple[int, ...] = SMALL, channels: int = 1, features: int = 4) -> nn.Module:
    workload = Workload(size, features_base=features, channels=channels)
    return network_from_plan(architecture_of(subject, workload), channels, 3, False)


def _carried(target: nn.Module, source: nn.Module) -> Transfer:
    result = transfer_weights(target, source.state_dict())
    target.load_state_dict(result.state)
    return result


@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s", "CTNet-identity"])
def test_the_same_plan_loads_everything_but_the_heads(subject: str) -> None:
    torch.manual_seed(0)
    source, target = _network(subject), _network(subject)
    heads = {k: v.clone() for k, v in target.state_dict().items() if HEADS in k}
    result = _carried(target, source)
    assert result.share("loaded") == 1.0
    for key, value in target.state_dict().items():
        assert torch.equal(value, heads[key] if HEADS in key else source.state_dict()[key])


@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s"])
@pytest.mark.parametrize(("before", "behind"), [(1, 2), (1, 4), (4, 1), (3, 2)])
def test_the_same_image_in_every_channel_gives_the_same_features(subject: str, before: int, behind: int) -> None:
    torch.manual_seed(0)
    source, target = _network(subject, channels=before).eval(), _network(subject, channels=behind).eval()
    result = _carried(target, source)
    assert result.tensors("adapted") == 1
    image = torch.randn(1, 1, *SMALL)
    mine = target.encoder(image.expand(-1, behind, -1, -1, -1))
    theirs = source.encoder(image.expand(-1, before, -1, -1, -1))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_2d_weights_in_3d_keep_their_features_slice_by_slice() -> None:
    """Zeros around the one plane of taps: without a step along the new axis every slice is filtered as it was."""
    torch.manual_seed(0)
    weight = torch.randn(5, 2, 3, 3)
    volume = torch.randn(1, 2, 6, 8, 8)
    inflated = fitted_kernel(weight[:, :, None], 2, 3)
    expected = torch.stack([F.conv2d(volume[:, :, z], weight, padding=1) for z in range(6)], 2)
    torch.testing.assert_close(F.conv3d(volume, inflated, padding=1), expected, rtol=1e-4, atol=1e-5)


def test_a_2d_network_is_carried_into_a_3d_one() -> None:
    torch.manual_seed(0)
    result = _carried(_network(UNET, (16, 16, 16)), _network(UNET, (16, 16)))
    assert result.share("skipped") == 0.0
    assert result.share("adapted") > 0.5


@pytest.mark.parametrize(("before", "behind"), [(1, 3), (3, 5), (3, 1), (5, 3), (5, 1)])
def test_kernel_sizes_keep_the_response_to_a_constant(before: int, behind: int) -> None:
    weight = torch.randn(4, 2, before, 3, 3)
    changed = fitted_kernel(weight, 2, behind)
    assert changed.shape == (4, 2, behind, 3, 3)
    torch.testing.assert_close(changed.sum(2), weight.sum(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "behind"), [(1, 3), (3, 5)])
def test_a_larger_kernel_filters_exactly_as_the_smaller_one(before: int, behind: int) -> None:
    weight, volume = torch.randn(4, 2, before, 3, 3), torch.randn(1, 2, 9, 6, 6)
    larger = fitted_kernel(weight, 2, behind)
    mine = F.conv3d(volume, larger, padding=(behind // 2, 1, 1))
    torch.testing.assert_close(mine, F.conv3d(volume, weight, padding=(before // 2, 1, 1)), rtol=1e-4, atol=1e-5)


def test_upsampling_repeats_a_tap_and_averages_several() -> None:
    single = torch.randn(3, 2, 1, 2, 2)
    doubled = upsampling_kernel(single, 2, 2)
    assert torch.equal(doubled[:, :, 0], doubled[:, :, 1]) and torch.equal(doubled[:, :, :1], single)
    pair = torch.randn(3, 2, 2, 2, 2)
    torch.testing.assert_close(upsampling_kernel(pair, 2, 1), pair.mean(2, keepdim=True))


def test_channels_by_hand() -> None:
    weight = torch.tensor([[[[2.0]], [[4.0]]]])
    assert spread_channels(weight, 3).flatten().tolist() == [2.0, 2.0, 2.0]
    assert spread_channels(weight, 1).flatten().tolist() == [6.0]


def test_depths_meet_at_full_resolution() -> None:
    """A deeper target takes encoder stages from the input on and decoder stages from the output on."""
    torch.manual_seed(0)
    source, target = _network(UNET, (16, 16, 16)), _network(UNET, (32, 32, 32))
    added = len(target.decoder.stages) - len(source.decoder.stages)
    assert added > 0
    _carried(target, source)
    for index, stage in enumerate(source.encoder.stages):
        assert _same(stage, target.encoder.stages[index])
    for index, stage in enumerate(source.decoder.stages):
        assert _same(stage, target.decoder.stages[index + added])


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_unet_is_carried_into_ctnet_and_the_transformer_stays_new() -> None:
    torch.manual_seed(0)
    source, target = _network(UNET), _network("CTNet-s")
    fresh = copy.deepcopy(target.transformer)
    result = _carried(target, source)
    assert _same(source.encoder, target.encoder) and _same(fresh, target.transformer)
    assert result.share("loaded") == pytest.approx(
        sum(p.numel() for p in [*source.encoder.parameters(), *_body(source)])
        / sum(p.numel() for p in [*target.encoder.parameters(), *_body(target), *target.transformer.parameters()])
    )


def _body(network: nn.Module) -> list[Tensor]:
    return [*network.decoder.stages.parameters(), *network.decoder.transpconvs.parameters()]


def test_other_widths_are_skipped_and_counted() -> None:
    result = transfer_weights(_network(features=4), _network(features=8).state_dict())
    assert result.share("loaded") == result.share("adapted") == 0.0
    assert all(row.note in ("shape differs", "head, stays new") for row in result.rows)


def test_each_tensor_counts_once_although_state_dicts_name_it_up_to_four_times() -> None:
    network = _network()
    result = transfer_weights(network, network.state_dict())
    assert sum(row.parameters for row in result.rows) == sum(p.numel() for p in network.parameters())


def test_prefixes_of_wrappers_are_taken_off() -> None:
    source = {f"module._orig_mod.{key}": value for key, value in _network().state_dict().items()}
    assert transfer_weights(_network(), source).share("loaded") == 1.0


def test_position_tables() -> None:
    table = torch.randn(1, 8, 6, 6, 6)
    assert resized_table(table, torch.Size((1, 8, 4, 4, 4))).shape == (1, 8, 4, 4, 4)
    assert resized_table(table[:, :, 0], torch.Size((1, 8, 6, 6, 6))).shape == (1, 8, 6, 6, 6)
    assert resized_table(table, torch.Size((1, 9, 6, 6, 6))) is None
