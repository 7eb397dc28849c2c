"""The contract of CTNet, over a table of plans (architecture.md "CTNet", methods/ctnet.md §7.1, 6, 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from ctnet_nnunet.architectures.ctnet import CTNet, cumulative_strides
from ctnet_nnunet.architectures.from_plan import CTNET_CLASS_NAME, as_ctnet
from ctnet_nnunet.architectures.transformer import TransformerOptions
from tests.architectures.plan_table import BY_NAME, PLANS, SMALL, Plan

over_plans = pytest.mark.parametrize("plan", PLANS, ids=[plan.name for plan in PLANS])


def stock_network(block: dict[str, Any], plan: Plan, deep_supervision: bool = False) -> nn.Module:
    """A network by nnU-Net's own function, which every stock command uses."""
    return get_network_from_plans(
        block["network_class_name"], block["arch_kwargs"], block["_kw_requires_import"], plan.channels, plan.classes,
        allow_init=True, deep_supervision=deep_supervision,
    )  # fmt: skip


def head_sizes(plan: Plan) -> list[tuple[int, ...]]:
    """Grid of each deep-supervision output, finest first: every stage but the deepest."""
    return [
        tuple(size // stride for size, stride in zip(plan.patch, row, strict=True))
        for row in cumulative_strides(plan.strides)[:-1]
    ]


def test_the_table_holds_a_dozen_plans_of_every_kind() -> None:
    assert len(PLANS) >= 12
    assert {plan.dimensions for plan in PLANS} == {2, 3}
    assert {plan.channels for plan in PLANS} == {1, 2, 3, 4}
    assert any(plan.residual for plan in PLANS)
    assert max(max(row) for plan in PLANS for row in cumulative_strides(plan.strides)) > 16


@over_plans
@torch.no_grad()
def test_outputs_have_the_grids_of_deep_supervision(plan: Plan) -> None:
    network = plan.network(deep_supervision=True).eval()
    image = plan.image()
    outputs = network(image)
    wanted = [(1, plan.classes, *size) for size in head_sizes(plan)]
    assert [tuple(output.shape) for output in outputs] == wanted
    network.decoder.deep_supervision = False
    single = network(image)
    assert isinstance(single, torch.Tensor)
    assert torch.equal(single, outputs[0])


@over_plans
def test_deep_supervision_changes_no_key_and_loads_strictly_both_ways(plan: Plan) -> None:
    on, off = plan.network(deep_supervision=True), plan.network(deep_supervision=False)
    assert set(on.state_dict()) == set(off.state_dict())
    off.load_state_dict(on.state_dict(), strict=True)
    on.load_state_dict(off.state_dict(), strict=True)
    assert all(torch.equal(value, on.state_dict()[key]) for key, value in off.state_dict().items())


@over_plans
def test_heads_are_where_stock_looks_for_them(plan: Plan) -> None:
    network = plan.network()
    heads = {key for key in network.state_dict() if ".seg_layers." in key}
    count = len(plan.strides) - 1
    assert heads == {f"decoder.seg_layers.{index}.{part}" for index in range(count) for part in ("weight", "bias")}
    assert all(network.state_dict()[key].shape[0] == plan.classes for key in heads)


@over_plans
def test_every_parameter_gets_a_gradient(plan: Plan) -> None:
    network = plan.network(deep_supervision=True).train()
    outputs = network(plan.image(batch=2))
    generator = torch.Generator().manual_seed(1)
    # Random weights: the mean of an instance-normalised map is constant, so a plain sum would give zero gradients.
    sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert not [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    still = [name for name, gradient in gradients.items() if name.endswith("weight") and gradient.abs().max() == 0]
    # nnU-Net starts the last norm of each residual block at zero, so what lies before it gets none at first.
    assert not [name for name in still if not plan.residual or "transformer" in name or "decoder.seg_layers" in name]
    assert gradients["transformer.position_table"].abs().max() > 0


@over_plans
@torch.no_grad()
def test_a_zero_projection_gives_the_plans_unet_to_the_bit(plan: Plan) -> None:
    network = plan.network(deep_supervision=True).eval()
    image = plan.image()
    before = network(image)[0]
    unet = stock_network(plan.unet_block(), plan, deep_supervision=True).eval()
    shared = {key: value for key, value in network.state_dict().items() if not key.startswith("transformer.")}
    unet.load_state_dict(shared, strict=True)
    expected = unet(image)
    assert not torch.equal(before, expected[0])  # the transformer does something until it is silenced
    network.transformer.unembed.projection.weight.zero_()
    network.transformer.unembed.projection.bias.zero_()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(network(image), expected, strict=True))


@pytest.mark.parametrize("name", ["isotropic 3d", "2d", "ResEnc 3d", "tiny: one stage earlier"])
def test_a_zero_projection_gives_the_unets_gradients(name: str) -> None:
    plan = BY_NAME[name]
    network, unet = plan.network(deep_supervision=True), stock_network(plan.unet_block(), plan, deep_supervision=True)
    unet.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith("transformer.")}, strict=True
    )
    nn.init.zeros_(network.transformer.unembed.projection.weight)
    nn.init.zeros_(network.transformer.unembed.projection.bias)
    for module in (network, unet):
        draws = torch.Generator().manual_seed(1)
        outputs = module(plan.image())
        sum((output * torch.randn(output.shape, generator=draws)).sum() for output in outputs).backward()
    theirs = dict(unet.named_parameters())
    for key, parameter in network.named_parameters():
        if not key.startswith("transformer."):
            assert torch.allclose(parameter.grad, theirs[key].grad, rtol=1e-4, atol=1e-4), key


@over_plans
@torch.no_grad()
def test_identity_is_the_plans_unet_with_its_very_keys(plan: Plan) -> None:
    network = plan.network(transformer=None).eval()
    unet = stock_network(plan.unet_block(), plan).eval()
    assert list(network.state_dict()) == list(unet.state_dict())
    unet.load_state_dict(network.state_dict(), strict=True)
    image = plan.image()
    assert torch.equal(network(image), unet(image))
    assert network.compute_conv_feature_map_size(plan.patch) == unet.compute_conv_feature_map_size(plan.patch)


@over_plans
@torch.no_grad()
def test_the_token_grid_is_the_real_one(plan: Plan) -> None:
    network = plan.network()
    assert (network.transformer_stage, network.token_grid(plan.patch)) == (plan.stage, plan.grid)
    features = network.convolutional_features(plan.image())
    assert tuple(features.shape) == (1, network.encoder.output_channels[plan.stage], *plan.grid)
    tokens = network.transformer.embed(features)
    assert tuple(tokens.shape) == (1, int(np.prod(plan.grid)), SMALL.embed_dim)
    assert (
        network.transformer.residual(network.transformer.encode(tokens, plan.grid), plan.grid).shape == features.shape
    )


@over_plans
def test_the_stock_function_builds_the_ctnet_plan(plan: Plan) -> None:
    network = stock_network(plan.block(), plan, deep_supervision=True)
    assert type(network) is CTNet
    ours = plan.network(deep_supervision=True)
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes


@over_plans
def test_the_memory_count_is_the_unets_and_the_transformers(plan: Plan) -> None:
    network = plan.network()
    unet = stock_network(plan.unet_block(), plan)
    transformer = network.transformer.feature_map_size(plan.grid)
    assert transformer > 0
    assert (
        network.compute_conv_feature_map_size(plan.patch)
        == unet.compute_conv_feature_map_size(plan.patch) + transformer
    )


@pytest.mark.parametrize(("name", "other_patch"), [
    ("isotropic 3d", (48, 32, 40)), ("anisotropic, first strides (1,2,2)", (16, 32, 48)), ("2d", (160, 112)),
    ("ResEnc 3d", (40, 40, 24)),
])  # fmt: skip
@torch.no_grad()
def test_weights_of_another_patch_size_load_with_stock_pretrained_weights(
    name: str, other_patch: tuple[int, ...], tmp_path: Path
) -> None:
    plan = BY_NAME[name]
    network = plan.network()
    wider = Plan(**{**vars(plan), "patch": other_patch})
    other = wider.network()
    assert other.token_grid(other_patch) != network.token_grid(plan.patch)
    other.load_state_dict(network.state_dict(), strict=True)
    fresh = wider.network()
    heads = {key: value.clone() for key, value in fresh.state_dict().items() if ".seg_layers." in key}
    torch.save({"network_weights": network.state_dict()}, tmp_path / "checkpoint_final.pth")
    load_pretrained_weights(fresh, str(tmp_path / "checkpoint_final.pth"))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, heads.get(key, network.state_dict()[key])), key
    assert fresh(wider.image()).shape[2:] == other_patch


def test_a_ctnet_plan_keeps_its_own_transformer() -> None:
    plan = BY_NAME["isotropic 3d"]
    block = plan.block()
    block["arch_kwargs"]["transformer"]["stage"] = 1
    kept = as_ctnet(block, plan.patch, TransformerOptions())
    assert kept == block
    assert kept["network_class_name"] == CTNET_CLASS_NAME
    assert stock_network(kept, plan).token_grid(plan.patch) == (16, 16, 16)


def test_translation_leaves_the_unet_plan_untouched() -> None:
    plan = BY_NAME["isotropic 3d"]
    block = plan.unet_block()
    as_ctnet(block, plan.patch, SMALL)
    assert block == plan.unet_block()


@pytest.mark.parametrize("stage", [-1, 4, 99])
def test_a_stage_outside_the_encoder_is_refused(stage: int) -> None:
    plan = BY_NAME["isotropic 3d"]
    arguments = {**plan.block()["arch_kwargs"]["transformer"], "stage": stage}
    network = plan.network(transformer=None)
    with pytest.raises(ValueError, match=f"stage {stage} outside the 4 encoder stages"):
        network._insert(arguments)


def test_without_a_transformer_there_are_no_tokens() -> None:
    network = BY_NAME["isotropic 3d"].network(transformer=None)
    with pytest.raises(ValueError, match="identity"):
        network.token_grid((32, 32, 32))
    with pytest.raises(ValueError, match="identity"):
        network.convolutional_features(torch.zeros(1, 1, 32, 32, 32))
