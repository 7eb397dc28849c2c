"""Rotation prediction: exact turns, honest labels, and no way to learn from what is not usable."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.pretext.base import PretextContext
from ctnet_nnunet.pretext.rotation import (
    Rotation,
    RotationOptions,
    centre_crop,
    rotation_loss,
    square_crop,
    turn,
    turns_for,
)
from tests.architectures.plan_table import Plan
from tests.pretext.units import CUBE, FLAT, PLANS, context_of, generator, network_of, views_of

over_plans = pytest.mark.parametrize("plan", PLANS, ids=[plan.name for plan in PLANS])


def task_of(plan: Plan, rotations: int = 4, **context: Any) -> tuple[Any, Rotation]:
    network = network_of(plan)
    return network, Rotation(network, context_of(plan, **context), RotationOptions(rotations))


def test_a_quarter_turn_by_hand_on_a_cube_of_4() -> None:
    cube = torch.arange(64).view(1, 4, 4, 4)
    turned = turn(cube, ((1, 2), 1))
    for z in range(4):
        for y in range(4):
            for x in range(4):
                assert turned[0, z, y, x] == cube[0, z, x, 3 - y]
    assert torch.equal(turn(cube, ((1, 2), 0)), cube)
    assert torch.equal(turn(cube, ((0, 2), 2)), cube.flip(1, 3))


@pytest.mark.parametrize("rotations", [4, 10])
def test_turning_back_restores_every_bit_and_all_classes_differ(rotations: int) -> None:
    image = torch.randn(2, 6, 6, 6, generator=generator())
    turns = turns_for(context_of(CUBE), rotations)
    assert len(turns) == rotations
    for plane, quarters in turns:
        back = turn(turn(image, (plane, quarters)), (plane, (4 - quarters) % 4))
        assert torch.equal(back, image)
    seen = {tuple(turn(image, chosen).flatten().tolist()) for chosen in turns}
    assert len(seen) == rotations
    assert torch.equal(turn(image, turns[0]), image)  # class 0 is the identity


@pytest.mark.parametrize(("spacing", "axial_axis", "inside", "plane"), [
    ((1.0, 1.0, 1.0), 0, (16, 16, 16), (1, 2)),    # isotropic: about the axis along the body
    ((1.0, 1.0, 1.0), 2, (16, 16, 16), (0, 1)),    # wherever transpose_forward has put it
    ((3.0, 1.0, 1.0), 0, (16, 16, 16), (1, 2)),
    ((1.0, 3.0, 1.0), 0, (16, 16, 16), (0, 2)),    # the only plane of equal spacing
    ((1.0, 1.005, 2.0), 2, (16, 16, 16), (0, 1)),  # half a percent counts as equal
    ((1.0, 1.0), None, (32, 32), (0, 1)),
])  # fmt: skip
def test_the_plane_of_four_turns(
    spacing: tuple[float, ...], axial_axis: int | None, inside: tuple[int, ...], plane: tuple[int, int]
) -> None:
    context = PretextContext(inside, inside, spacing, axial_axis, 1)
    assert turns_for(context, 4) == [(plane, quarters) for quarters in range(4)]


@pytest.mark.parametrize(("spacing", "rotations"), [
    ((1.0, 2.0, 3.0), 4), ((1.0, 1.02, 3.0), 4), ((1.0, 1.0, 3.0), 10), ((1.0, 1.5), 4), ((1.0, 1.0), 10),
])  # fmt: skip
def test_spacing_without_equal_axes_is_refused_with_the_way_out(spacing: tuple[float, ...], rotations: int) -> None:
    size = (16,) * len(spacing)
    with pytest.raises(PlanError, match=f"rotations: {rotations} classes need axes of equal spacing") as caught:
        turns_for(PretextContext(size, size, spacing, None, 1), rotations)
    assert "--set pretext.rotation=0" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rotations", [0, 1, 3, 5, 24])
def test_other_numbers_of_classes_are_refused(rotations: int) -> None:
    with pytest.raises(PlanError, match=f"rotations: {rotations} is not 4 or 10"):
        turns_for(context_of(CUBE), rotations)


@pytest.mark.parametrize(("size", "plane", "strides", "crop"), [
    ((16, 16, 16), (1, 2), (4, 4, 4), (16, 16, 16)),
    ((16, 24, 20), (1, 2), (4, 4, 4), (16, 20, 20)),   # the smaller of both
    ((18, 23, 21), (1, 2), (4, 8, 8), (16, 16, 16)),   # multiples of the strides, on the axis that stays, too
    ((9, 40, 30), (1, 2), (1, 16, 16), (9, 16, 16)),
    ((16, 3, 16), (1, 2), (4, 4, 4), (16, 0, 0)),
    ((33, 50), (0, 1), (4, 4), (32, 32)),
])  # fmt: skip
def test_the_crop_turns_into_itself(
    size: tuple[int, ...], plane: tuple[int, int], strides: tuple[int, ...], crop: tuple[int, ...]
) -> None:
    assert square_crop(size, [(plane, quarters) for quarters in range(4)], strides) == crop


def test_the_crop_of_ten_classes_is_a_cube() -> None:
    assert square_crop((20, 24, 17), turns_for(context_of(CUBE), 10), (4, 4, 4)) == (16, 16, 16)


def test_the_crop_is_the_centre() -> None:
    line = torch.arange(7.0).view(1, 1, 7)
    assert centre_crop(line, (3,)).flatten().tolist() == [2, 3, 4]
    assert centre_crop(line, (7,)).flatten().tolist() == list(range(7))


def test_scans_below_one_token_are_refused() -> None:
    with pytest.raises(PlanError, match=r"at least one token per axis, they have \[16, 16, 3\] voxels"):
        task_of(CUBE, inside_size=(16, 16, 3))


@over_plans
def test_targets_are_the_turned_views(plan: Plan) -> None:
    _, task = task_of(plan)
    views = views_of(plan, batch=4)
    draw = {"label": torch.tensor([2, 0, 3, 1])}
    made = task.targets(views, draw)
    assert torch.equal(made["label"], draw["label"])
    for sample, label in enumerate(draw["label"].tolist()):
        axes = [-2, -1]
        assert torch.equal(made["turned"][sample], torch.rot90(views["inside"][sample], label, axes))
    again = task.targets(views, draw)
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_labels_are_uniform_and_come_from_the_generator_alone() -> None:
    _, task = task_of(CUBE, rotations=10)
    views = {"inside": torch.zeros(5000, 1)}
    first = task.sample(views, generator(3))["label"]
    torch.manual_seed(99)
    torch.rand(10)
    assert torch.equal(first, task.sample(views, generator(3))["label"])
    assert not torch.equal(first, task.sample(views, generator(4))["label"])
    counts = torch.bincount(first, minlength=10)
    assert (counts - 500).abs().max() < 5 * (500 * 0.9) ** 0.5  # five standard deviations


def test_loss_and_accuracy_against_a_naive_loop() -> None:
    logits = torch.randn(6, 4, generator=generator())
    label = torch.tensor([0, 3, -100, 1, -100, 2])
    total, right, count = 0.0, 0, 0
    for row, wanted in zip(logits.tolist(), label.tolist(), strict=True):
        if wanted >= 0:
            total += -row[wanted] + math.log(sum(math.exp(value) for value in row))
            right += max(range(4), key=row.__getitem__) == wanted
            count += 1
    result = rotation_loss(logits, label)
    assert float(result["loss"]) == pytest.approx(total / count, rel=1e-5)
    assert float(result["accuracy"]) == pytest.approx(right / count)
    assert float(result["usable"]) == pytest.approx(4 / 6)


def test_a_perfect_prediction_is_the_optimum() -> None:
    label = torch.tensor([0, 1, 2, 3])
    result = rotation_loss(100.0 * torch.eye(4), label)
    assert float(result["loss"]) < 1e-6
    assert float(result["accuracy"]) == 1.0
    assert float(rotation_loss(100.0 * torch.eye(4).roll(1, 0), label)["loss"]) > 50


@pytest.mark.parametrize("label", [[-100, -100], [1, -100]])
def test_unusable_samples_give_no_gradient(label: list[int]) -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    result = rotation_loss(logits, torch.tensor(label))
    result["loss"].backward()
    assert torch.isfinite(result["loss"])
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().max() == 0
    assert (logits.grad[0].abs().max() > 0) == (label[0] >= 0)
    if label[0] < 0:
        assert float(result["loss"]) == float(result["accuracy"]) == 0.0


def test_a_sample_marked_unusable_is_ignored() -> None:
    network, task = task_of(CUBE)
    views = views_of(CUBE, batch=3)
    views["usable"] = torch.tensor([True, False, True])
    made = task.targets(views, {"label": torch.tensor([1, 2, 3])})
    assert made["label"].tolist() == [1, -100, 3]
    before = task(network, made)["loss"]
    made["turned"][1] = 1e3 * torch.rand(made["turned"][1].shape)
    assert torch.allclose(task(network, made)["loss"], before)


@torch.no_grad()
def test_an_image_that_looks_the_same_from_all_sides_gives_log_4() -> None:
    network, task = task_of(CUBE)
    network.transformer.position_table.zero_()
    axis = torch.linspace(-1, 1, 16)
    ball = sum(value**2 for value in torch.meshgrid(axis, axis, axis, indexing="ij"))[None, None]
    losses = []
    for quarters in range(4):
        turned = task.targets({"inside": ball, "usable": torch.tensor([True])}, {"label": torch.tensor([quarters])})
        assert torch.allclose(turned["turned"], ball, atol=1e-6)
        losses.append(float(task(network, turned)["loss"]))
    assert sum(losses) / 4 >= math.log(4) - 1e-6  # never better than chance
    task.head[1].weight.zero_()
    task.head[1].bias.zero_()
    assert float(task(network, turned)["loss"]) == pytest.approx(math.log(4), rel=1e-6)


@over_plans
def test_the_gradient_reaches_the_first_layer_and_not_the_decoder(plan: Plan) -> None:
    network, task = task_of(plan)
    views = views_of(plan)
    task(network, task.targets(views, task.sample(views, generator())))["loss"].backward()
    first = next(parameter for name, parameter in network.named_parameters() if name.endswith("conv.weight"))
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    assert network.transformer.position_table.grad.abs().max() > 0
    assert all(
        p.grad is None for name, p in network.named_parameters() if "seg_layers" in name or "transpconvs" in name
    )


def test_bfloat16_autocast_stays_finite() -> None:
    network, task = task_of(FLAT)
    views = views_of(FLAT)
    made = task.targets({**views, "inside": 50 * views["inside"]}, task.sample(views, generator()))
    with torch.autocast("cpu", torch.bfloat16):
        result = task(network, made)
    result["loss"].backward()
    assert result["loss"].dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
