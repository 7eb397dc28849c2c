"""The two losses against naive loops, masks that let no gradient through, metrics on known lines, and an overfit."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planes.geometry import Line
from ctnet_nnunet.pretext.imaging_planes import (
    ImagingPlanes,
    ImagingPlanesOptions,
    heatmap_loss,
    line_errors,
    location_loss,
)
from tests.architectures.plan_table import Plan, halvings
from tests.pretext.units import CUBE, FLAT, context_of, network_of

RESIDUAL_2D = Plan("2d residual", (32, 32), halvings(2, 2), 2, (8, 8), residual=True)
SIGMA = 4.0


def line_at(angle: float, row: float, column: float, spacing: tuple[float, float] = (1.0, 1.0)) -> Line:
    """A line through pixel (row, column) whose direction makes ``angle`` degrees in mm with the columns' axis."""
    radians = math.radians(angle)
    per_row, per_column = math.cos(radians) * spacing[0], -math.sin(radians) * spacing[1]
    return Line(per_row, per_column, -(per_row * row + per_column * column))


def batch_of(
    lines: list[list[Line | None]], size: tuple[int, int] = (32, 32), seed: int = 0
) -> dict[str, torch.Tensor]:
    """Images that show their lines as dark and bright sides, with targets."""
    generator = torch.Generator().manual_seed(seed)
    heat, valid, coefficients, images = [], [], [], []
    for sample in lines:
        drawn = [np.zeros(size) if line is None else line.heatmap(size, SIGMA) for line in sample]
        sides = [
            np.zeros(size) if line is None else (k + 1) * np.tanh(line.distance(size) / 3)
            for k, line in enumerate(sample)
        ]
        heat.append(np.stack(drawn))
        valid.append([line is not None for line in sample])
        coefficients.append(
            [[0.0] * 3 if line is None else [line.per_row, line.per_column, line.offset] for line in sample]
        )
        images.append(sum(sides))
    count = len(lines)
    host = torch.tensor(np.stack(images), dtype=torch.float32)[:, None]
    return {
        "host": host + 0.05 * torch.randn(host.shape, generator=generator),
        "heat": torch.tensor(np.stack(heat), dtype=torch.float32),
        "heat_valid": torch.tensor(valid),
        "location": torch.linspace(0.2, 0.9, count),
        "location_valid": torch.ones(count, dtype=torch.bool),
        "line": torch.tensor(coefficients),
        "slices": torch.full((count,), 11),
    }


TWO = [[line_at(20, 12, 14), line_at(100, 18, 20)], [line_at(65, 15, 20), line_at(150, 20, 12)]]


def task_of(plan: Plan, **options: object) -> tuple[torch.nn.Module, ImagingPlanes]:
    network = network_of(plan)
    return network, ImagingPlanes(network, context_of(plan), ImagingPlanesOptions(**options))  # type: ignore[arg-type]


def test_losses_equal_naive_loops_over_what_is_valid() -> None:
    rng = torch.Generator().manual_seed(1)
    predicted, target = (torch.randn(3, 2, 4, 5, generator=rng) for _ in range(2))
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    errors = [((predicted[b, g] - target[b, g]) ** 2).mean() for b in range(3) for g in range(2) if valid[b, g]]
    assert torch.isclose(heatmap_loss(predicted, target, valid), sum(errors) / 3)
    assert heatmap_loss(predicted, target, torch.zeros_like(valid)) == 0
    t, p = torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0.2, 9.0, 0.7])
    assert torch.isclose(location_loss(p, t, torch.tensor([True, False, True])), torch.tensor((0.01 + 0.09) / 2))
    assert location_loss(p, t, torch.zeros(3, dtype=torch.bool)) == 0


@pytest.mark.parametrize("angle", [0.0, 3.0, 45.0, 90.0, 133.0, 179.0])
def test_a_perfect_heatmap_has_no_angle_and_no_offset_and_a_turned_one_has_its_own(angle: float) -> None:
    true, off = line_at(angle, 20, 20), line_at(angle + 10, 23, 20)
    heat = torch.tensor(np.stack([line.heatmap((41, 41), 2.0) for line in (true, off)]))[None]
    lines = torch.tensor([[[true.per_row, true.per_column, true.offset]] * 2])
    angles, offsets = line_errors(heat, lines, (1.0, 1.0))
    assert angles[0, 0] < 0.6 and offsets[0, 0] < 0.05
    assert angles[0, 1] == pytest.approx(10, abs=0.8)
    # The centroid of a line cut off by the image lies on it, at up to a few pixels from (23, 20).
    assert offsets[0, 1] == pytest.approx(3 * abs(math.cos(math.radians(angle))), abs=0.8)
    assert torch.isnan(line_errors(torch.zeros(1, 1, 8, 8), lines[:, :1], (1.0, 1.0))[0]).all()


@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 60.0, 90.0, 133.0])
def test_ten_degrees_are_ten_degrees_whatever_the_pixels_shape(angle: float) -> None:
    """In mm: in pixels of 1 × 2 mm, 10° would be 5° or 20° by the line's direction."""
    spacing = (1.0, 2.0)
    true, off = line_at(angle, 40, 20, spacing), line_at(angle + 10, 43, 20, spacing)
    heat = torch.tensor(np.stack([line.heatmap((81, 41), 3.0) for line in (true, off)]))[None]
    batch = {
        "heat": heat,
        "heat_valid": torch.tensor([[False, True]]),
        "line": torch.tensor([[[true.per_row, true.per_column, true.offset]] * 2]),
    }
    angles, offsets = line_errors(heat, batch["line"], spacing)
    assert angles[0, 0] < 0.6 and offsets[0, 0] < 0.05
    assert angles[0, 1] == pytest.approx(10, abs=0.8)
    assert offsets[0, 1] == pytest.approx(3 * abs(math.cos(math.radians(angle))), abs=0.8)
    network = network_of(FLAT)
    task = ImagingPlanes(network, context_of(FLAT, spacing=spacing), ImagingPlanesOptions())
    with mock.patch("ctnet_nnunet.pretext.imaging_planes.line_errors", side_effect=line_errors) as called:
        task(network, batch_of(TWO))
    assert called.call_args.args[2] == spacing, "the plan's own pixels"


def test_a_channel_that_no_study_knows_gets_no_gradient() -> None:
    network, task = task_of(FLAT)
    batch = batch_of([[line_at(20, 12, 14), None], [line_at(65, 15, 20), None]])
    task(network, batch)["loss"].backward()
    gradient = task.heatmaps.weight.grad
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0 and task.heatmaps.bias.grad[1] == 0


def test_each_task_alone_and_both_together() -> None:
    batch = batch_of(TWO)
    network, both = task_of(FLAT, planes_lines=2.0, planes_location=0.5)
    outputs = both.eval()(network, batch)
    assert torch.isclose(outputs["loss"], 2 * outputs["lines"] + 0.5 * outputs["location"])
    network, lines = task_of(FLAT, planes_location=0.0)
    assert lines.location is None and "location" not in lines(network, batch)
    network, location = task_of(FLAT, planes_lines=0.0)
    assert location.heatmaps is None and "overlap" not in location(network, batch)
    location(network, batch)["loss"].backward()
    touched = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("stages" in name or "encoder" in name for name in touched)
    assert not any("transpconvs" in name for name in touched), "the location trains the encoder alone"


@pytest.mark.parametrize("plan", [FLAT, RESIDUAL_2D], ids=lambda plan: plan.name)
def test_gradients_reach_encoder_and_decoder_and_bfloat16_is_finite(plan: Plan) -> None:
    network, task = task_of(plan)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task(network, batch_of(TWO))
    assert outputs["loss"].dtype == torch.float32 and outputs["loss"].isfinite()
    outputs["loss"].backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert any("transpconvs" in name and g.abs().sum() > 0 for name, g in gradients.items())
    assert next(iter(gradients.values())).abs().sum() > 0


def test_two_slices_are_learned() -> None:
    network, task = task_of(FLAT, planes_dropout=0.0)
    batch = batch_of(TWO)
    optimizer = torch.optim.Adam([*network.parameters(), *task.parameters()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        task(network, batch)["loss"].backward()
        optimizer.step()
        schedule.step()
    outputs = task.eval()(network.eval(), batch)
    assert outputs["lines"] < 2e-3 and outputs["location"] < 1e-3
    assert outputs["found"] == 1 and outputs["angle_deg"] < 3 and outputs["offset_mm"] < 1
    assert outputs["location_slices"] < 0.5
    heat, location = task.predict(network, batch["host"])
    assert torch.allclose(location, batch["location"], atol=0.05)
    for channel in range(2):  # the ridge lies within a pixel of the line wherever a column or row crosses it
        axis = 0 if abs(TWO[0][channel].per_row) > abs(TWO[0][channel].per_column) else 1
        ridge, true = (values[0, channel].argmax(axis)[4:-4] for values in (heat, batch["heat"]))
        assert (ridge - true).abs().max() <= 1


def test_it_draws_nothing_and_hands_the_view_on() -> None:
    _, task = task_of(FLAT)
    batch = batch_of(TWO)
    targets = task.targets(batch, task.sample(batch, torch.Generator()))
    assert set(targets) == set(batch) and all(targets[name] is batch[name] for name in batch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"planes_lines": 0.0, "planes_location": 0.0}, "one of them"),
        ({"planes_lines": -1.0}, "0 or more"),
        ({"planes_sigma_mm": 0.0}, "not positive"),
        ({"planes_guests": ()}, "at least one role"),
        ({"planes_dropout": 1.0}, "dropout < 1"),
        ({"planes_guest_slice": -1}, "index from 0"),
        ({"planes_guest_slice": True}, "index from 0"),
        ({"planes_guest_slice": 2.0}, "index from 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImagingPlanesOptions(**options)  # type: ignore[arg-type]


def test_three_dimensions_are_refused() -> None:
    network = network_of(CUBE)
    with pytest.raises(PlanError, match="2d configuration"):
        ImagingPlanes(network, context_of(CUBE), ImagingPlanesOptions())
