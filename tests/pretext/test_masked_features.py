"""Masked features: what is hidden, what is asked for, and what the loss can see."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.pretext.masked_features import (
    COLLAPSED_STD,
    MaskedFeatures,
    MaskedFeaturesOptions,
    masked_loss,
)
from tests.architectures.plan_table import Plan
from tests.pretext.units import CUBE, FLAT, PLANS, TWO_CHANNELS, context_of, generator, network_of, views_of

over_plans = pytest.mark.parametrize("plan", PLANS, ids=[plan.name for plan in PLANS])


def task_of(plan: Plan, **options: Any) -> tuple[CTNet, MaskedFeatures]:
    network = network_of(plan)
    return network, MaskedFeatures(network, context_of(plan), MaskedFeaturesOptions(**options))


def prediction(task: MaskedFeatures, network: CTNet, made: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What the predictor gave in a forward pass (B, N, F), and the result."""
    caught: list[Tensor] = []
    handle = task.predictor.register_forward_hook(lambda module, given, output: caught.append(output))
    result = task(network, made)
    handle.remove()
    return caught[0], result


class TwoByTwo(nn.Module):
    """A network of grid 2³ over a cube of 4³, as far as the targets look at it."""

    transformer = nn.Module()
    transformer.embed_dim = 3

    def token_grid(self, patch_size: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size // 2 for size in patch_size)


def test_targets_by_hand_on_a_cube_of_4() -> None:
    context = context_of(Plan("by hand", (4, 4, 4), [], 0, (2, 2, 2)))
    task = MaskedFeatures(TwoByTwo(), context, MaskedFeaturesOptions(mask_target="online_feature"))
    cube = torch.arange(1.0, 65.0).view(1, 1, 4, 4, 4)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 1, 0] = mask[0, 1, 1, 1] = True
    made = task.targets({"augmented": cube}, {"mask": mask})
    for z in range(4):
        for y in range(4):
            for x in range(4):
                hidden = (z // 2, y // 2, x // 2) in {(0, 1, 0), (1, 1, 1)}
                assert made["seen"][0, 0, z, y, x] == (0 if hidden else cube[0, 0, z, y, x])
    assert torch.equal(made["image"], cube)
    assert made["mask"].tolist() == [[False, False, True, False, False, False, False, True]]


def test_without_mask_input_the_whole_patch_is_seen() -> None:
    _, task = task_of(CUBE, mask_input=False)
    views = views_of(CUBE)
    made = task.targets(views, task.sample(views, generator()))
    assert torch.equal(made["seen"], views["augmented"])
    assert made["mask"].any()


@over_plans
def test_the_same_generator_gives_the_same_mask_and_target(plan: Plan) -> None:
    _, task = task_of(plan)
    views = views_of(plan)
    first = task.sample(views, generator(5))
    torch.manual_seed(123)  # the global generator has no part in it
    assert torch.equal(first["mask"], task.sample(views, generator(5))["mask"])
    assert not torch.equal(first["mask"], task.sample(views, generator(6))["mask"])
    assert not torch.equal(first["mask"][0], first["mask"][1])
    made, again = task.targets(views, first), task.targets(views, first)
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_the_loss_against_a_naive_loop() -> None:
    predicted = 2 * torch.randn(2, 5, 3, generator=generator())
    target = torch.randn(2, 5, 3, generator=generator(1))
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    total, count = 0.0, 0
    for sample in range(2):
        for token in range(5):
            if mask[sample, token]:
                errors = [
                    abs(float(a - b)) for a, b in zip(predicted[sample, token], target[sample, token], strict=True)
                ]
                total += sum(e * e / 2 if e < 1 else e - 0.5 for e in errors) / 3
                count += 1
    assert count == 3
    assert float(masked_loss(predicted, target, mask)) == pytest.approx(total / count, rel=1e-5)


def test_a_perfect_prediction_is_the_optimum() -> None:
    target = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    assert float(masked_loss(target, target, mask)) == 0.0
    elsewhere = target + 7.0 * ~mask[..., None]
    assert float(masked_loss(elsewhere, target, mask)) == 0.0
    assert float(masked_loss(target + 0.01, target, mask)) > 0


def test_predictions_of_seen_tokens_get_no_gradient() -> None:
    predicted = torch.randn(2, 6, 4, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]]).bool()
    masked_loss(predicted, torch.randn(2, 6, 4), mask).backward()
    assert predicted.grad[~mask].abs().max() == 0
    assert (predicted.grad[mask].abs().amax(-1) > 0).all()


@over_plans
def test_ratio_0_is_a_loss_of_0(plan: Plan) -> None:
    network, task = task_of(plan, mask_ratio=0.0)
    views = views_of(plan)
    made = task.targets(views, task.sample(views, generator()))
    assert not made["mask"].any()
    assert torch.equal(made["seen"], views["augmented"])
    result = task(network, made)
    assert float(result["loss"]) == 0.0
    result["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@over_plans
@torch.no_grad()
def test_voxels_of_hidden_cells_change_the_target_and_not_the_prediction(plan: Plan) -> None:
    network, task = task_of(plan)
    views = views_of(plan)
    draw = task.sample(views, generator())
    made = task.targets(views, draw)
    hidden = (made["seen"] == 0) & (made["image"] != 0)
    changed = task.targets({"augmented": torch.where(hidden, views["augmented"] + 3, views["augmented"])}, draw)
    before, result = prediction(task, network, made)
    after, other = prediction(task, network, changed)
    assert torch.equal(before, after)
    assert not torch.equal(task._target(network, made["image"])[0], task._target(network, changed["image"])[0])
    assert float(result["loss"]) != float(other["loss"])
    _, leaky = task_of(plan, mask_input=False)
    leaky.load_state_dict(task.state_dict())
    assert not torch.equal(
        *(prediction(leaky, network, leaky.targets({"augmented": m["image"]}, draw))[0] for m in (made, changed))
    )


@torch.no_grad()
def test_hidden_tokens_differ_by_their_position_alone() -> None:
    network, task = task_of(CUBE)
    everything = {"mask": torch.ones(1, 4, 4, 4, dtype=torch.bool)}
    one, _ = prediction(task, network, task.targets(views_of(CUBE, 1, seed=1), everything))
    two, _ = prediction(task, network, task.targets(views_of(CUBE, 1, seed=2), everything))
    assert torch.equal(one, two)  # nothing of the image is left
    assert one.std(1).max() > 0
    network.transformer.position_table.zero_()
    alike, _ = prediction(task, network, task.targets(views_of(CUBE, 1), everything))
    assert alike.std(1).max() < 1e-6


@torch.no_grad()
def test_the_target_is_the_normalised_token_of_the_whole_patch() -> None:
    network, task = task_of(CUBE)
    image = views_of(CUBE)["augmented"]
    tokens = network.transformer.embed(network.convolutional_features(image))
    naive = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    target, spread = task._target(network, image)
    assert torch.allclose(target, naive, atol=1e-4)
    assert float(spread) == pytest.approx(float(tokens.flatten(0, 1).std(0).mean()), rel=1e-4)


@torch.no_grad()
def test_the_voxel_target_is_the_cell_itself() -> None:
    network, task = task_of(TWO_CHANNELS, mask_target="voxel")
    image = views_of(TWO_CHANNELS)["augmented"]
    target, _ = task._target(network, image)
    assert task.teacher is None
    assert tuple(target.shape) == (2, 64, 2 * 64)
    token = 1 * 16 + 2 * 4 + 3
    assert torch.equal(target[1, token], image[1, :, 4:8, 8:12, 12:16].flatten())
    made = task.targets({"augmented": image}, task.sample({"augmented": image}, generator()))
    assert prediction(task, network, made)[0].shape == target.shape


def test_the_online_target_passes_no_gradient_and_needs_no_teacher() -> None:
    network, task = task_of(CUBE, mask_target="online_feature")
    assert task.teacher is None
    target, _ = task._target(network, views_of(CUBE)["augmented"])
    assert not target.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("plan", [CUBE, FLAT], ids=["3d", "2d"])
def test_collapse_constant_features_and_a_zero_prediction_cost_nothing_and_the_monitor_tells(plan: Plan) -> None:
    network, task = task_of(plan)
    views = views_of(plan)
    made = task.targets(views, task.sample(views, generator()))
    assert float(task(network, made)["token_std"]) > COLLAPSED_STD
    network.transformer.embedding.weight.zero_()
    network.transformer.embedding.bias.fill_(3.0)
    task.before_training(network)
    task.predictor[-1].weight.zero_()
    task.predictor[-1].bias.zero_()
    result = task(network, made)
    assert float(result["loss"]) == pytest.approx(0.0, abs=1e-10)
    assert float(result["token_std"]) < COLLAPSED_STD


@over_plans
def test_the_gradient_reaches_the_first_layer_the_mask_token_and_not_the_teacher(plan: Plan) -> None:
    network, task = task_of(plan)
    views = views_of(plan)
    task(network, task.targets(views, task.sample(views, generator())))["loss"].backward()
    first = next(parameter for name, parameter in network.named_parameters() if name.endswith("conv.weight"))
    assert first.grad.abs().max() > 0
    assert task.mask_token.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in task.predictor.parameters())
    assert task.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert all(
        p.grad is None for name, p in network.named_parameters() if "seg_layers" in name or "transpconvs" in name
    )


@pytest.mark.parametrize("mask_target", ["ema_feature", "online_feature", "voxel"])
def test_bfloat16_autocast_stays_finite(mask_target: str) -> None:
    network, task = task_of(FLAT, mask_target=mask_target)
    views = views_of(FLAT)
    made = task.targets({"augmented": 50 * views["augmented"]}, task.sample(views, generator()))
    with torch.autocast("cpu", torch.bfloat16):
        result = task(network, made)
    assert result["loss"].dtype == torch.float32
    assert math.isfinite(float(result["loss"]))
    result["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [
    {"mask_ratio": 1.0}, {"mask_ratio": -0.1}, {"mask_block": 0}, {"teacher_momentum": 1.5},
])  # fmt: skip
def test_options_outside_their_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskedFeaturesOptions(**options)
