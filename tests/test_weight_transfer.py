"""Weights carried between networks of different plans: what the adaptations preserve, and what counts as what."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet.architectures.features import full_resolution_features
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
    """A volume whose slices are all one image gives that image's features in every slice, encoder and decoder."""
    torch.manual_seed(0)
    source, target = _network(UNET, (16, 16)).eval(), _network(UNET, (16, 16, 16)).eval()
    result = _carried(target, source)
    assert result.share("skipped") == 0.0
    assert result.share("adapted") > 0.5
    image = torch.randn(1, 1, 16, 16)
    flat = [*source.encoder(image), full_resolution_features(source, image)]
    volume = image[:, :, None].expand(-1, -1, 16, -1, -1)
    deep = [*target.encoder(volume), full_resolution_features(target, volume)]
    for one, other in zip(deep, flat, strict=True):
        torch.testing.assert_close(one, other[:, :, None].expand_as(one), rtol=1e-3, atol=1e-3)


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
    assert spread_channels(weight, 3, wanted=1).flatten().tolist() == [6.0, 0.0, 0.0]
    assert spread_channels(weight, 4, wanted=2).flatten().tolist() == [2.0, 4.0, 0.0, 0.0]
    assert spread_channels(weight, 2, wanted=1).flatten().tolist() == [6.0, 0.0]
    assert spread_channels(weight, 3, images=1, wanted=1).flatten().tolist() == [2.0, 0.0, 0.0]
    assert spread_channels(weight, 3, images=1, wanted=2).flatten().tolist() == [1.0, 1.0, 4.0]
    assert spread_channels(weight, 1, images=1).flatten().tolist() == [2.0]


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


def _encoder_only(key: str) -> bool:
    return key.startswith("encoder.")


def _without_repeated_layers(key: str) -> bool:
    return "all_modules" not in key


@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s"])
@pytest.mark.parametrize("named", [_encoder_only, _without_repeated_layers])
def test_a_file_that_has_one_of_a_tensors_names_fills_them_all(subject: str, named: Callable[[str], bool]) -> None:
    """``load_state_dict`` takes a tensor's last name; the file may have the first alone."""
    torch.manual_seed(0)
    source, target = _network(subject), _network(subject)
    result = transfer_weights(target, {key: value for key, value in source.state_dict().items() if named(key)})
    target.load_state_dict(result.state)
    assert _same(source.encoder, target.encoder)
    assert _same(source.decoder.stages, target.decoder.stages) == (named is _without_repeated_layers)
    loaded = sum(p.numel() for p in source.encoder.parameters())
    if named is _encoder_only:
        assert sum(row.parameters for row in result.rows if row.action == "loaded") == loaded
        assert all(row.key.startswith("encoder.") for row in result.rows if row.action == "loaded")


def test_other_names_of_modules_are_read_and_go_before_a_tensor_that_had_the_name() -> None:
    torch.manual_seed(0)
    source, target = _network(RESENC), _network(RESENC)
    weights = {f"module.online_{key}": value for key, value in source.encoder.state_dict(prefix="encoder.").items()} | {
        key: torch.zeros_like(value) for key, value in source.encoder.state_dict(prefix="encoder.").items()
    }
    prefixes = {"online_encoder.stages": "encoder.stages", "online_encoder.stem": "encoder.stem"}
    target.load_state_dict(transfer_weights(target, weights, prefixes).state)
    assert _same(source.encoder, target.encoder)


def test_heads_are_in_no_number_of_the_table() -> None:
    network = _network()
    result = transfer_weights(network, network.state_dict())
    heads = [row for row in result.rows if HEADS in row.key]
    assert heads and all(row.action == "skipped" for row in heads)
    assert result.tensors("skipped") == 0
    assert result.tensors("loaded") == len(result.rows) - len(heads)


def test_prefixes_of_wrappers_are_taken_off() -> None:
    source = {f"module._orig_mod.{key}": value for key, value in _network().state_dict().items()}
    assert transfer_weights(_network(), source).share("loaded") == 1.0


def test_position_tables() -> None:
    table = torch.randn(1, 8, 6, 6, 6)
    assert resized_table(table, torch.Size((1, 8, 4, 4, 4))).shape == (1, 8, 4, 4, 4)
    assert resized_table(table[:, :, 0], torch.Size((1, 8, 6, 6, 6))).shape == (1, 8, 6, 6, 6)
    assert resized_table(table, torch.Size((1, 9, 6, 6, 6))) is None


def test_a_position_table_of_another_width_is_skipped_and_called_so() -> None:
    target = nn.Module()
    target.register_parameter("position_table", nn.Parameter(torch.zeros(1, 9, 6, 6, 6)))
    (row,) = transfer_weights(target, {"position_table": torch.randn(1, 8, 6, 6, 6)}).rows
    assert (row.action, row.note) == ("skipped", "shape differs")
