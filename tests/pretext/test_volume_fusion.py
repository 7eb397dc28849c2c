"""Volume fusion: the maps, the fusion, the intensity changes and the task, against independent slow versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctnet_nnunet.architectures.features import full_resolution_features
from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import RESENC, UNET, Workload, architecture_of
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.pretext.base import PretextContext
from ctnet_nnunet.pretext.volume_fusion import (
    VolumeFusion,
    VolumeFusionOptions,
    adaptive_contrast,
    box_map,
    changed_intensity,
    fuse,
    grid_map,
    hard_dice,
    paint_boxes,
    soft_dice_loss,
    standardised,
)

SIZE = (16, 24, 20)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _task(network: nn.Module | None = None, channels: int = 1, size: tuple[int, ...] = (16, 16, 16), **options):
    network = network or _network(UNET, size, channels)
    context = PretextContext(size, size, (1.0,) * len(size), None, channels)
    return network, VolumeFusion(network, context, VolumeFusionOptions(**options))


def _network(subject: str, size: tuple[int, ...], channels: int = 1) -> nn.Module:
    workload = Workload(size, features_base=4, channels=channels, classes=3)
    return network_from_plan(architecture_of(subject, workload), channels, 3, True)


def _views(batch: int = 2, channels: int = 1, size: tuple[int, ...] = (16, 16, 16)) -> dict[str, Tensor]:
    return {"pair": torch.randn(batch, 2, channels, *size, generator=_generator(9))}


# --- maps ----------------------------------------------------------------------------------------


def test_grid_with_one_class_everywhere_shows_the_foreground_alone() -> None:
    classes = grid_map((8, 8, 8), (4, 4, 4), (4, 4, 4), 1.0, 1, _generator())
    foreground, background = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 2, 8, 8, 8)
    assert bool((classes == 1).all())
    torch.testing.assert_close(fuse(foreground, background, classes[None], 1), foreground, rtol=0, atol=0)


def test_grid_without_foreground_shows_the_background_alone() -> None:
    classes = grid_map((8, 8, 8), (2, 2, 2), (4, 4, 4), 0.0, 4, _generator())
    foreground, background = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 8, 8, 8)
    assert bool((classes == 0).all())
    torch.testing.assert_close(fuse(foreground, background, classes[None], 4), background, rtol=0, atol=0)


def test_equal_sub_volumes_fuse_to_themselves() -> None:
    image = torch.randn(2, 1, *SIZE)
    classes = torch.randint(0, 5, (2, *SIZE))
    torch.testing.assert_close(fuse(image, image, classes, 4), image)


def test_the_algebra_of_fusion() -> None:
    foreground, background = torch.randn(2, 2, 3, *SIZE, dtype=torch.float64)
    classes = torch.stack([grid_map(SIZE, (2, 2, 2), (5, 6, 6), 0.7, 4, _generator(seed)) for seed in (1, 2)])
    fused = fuse(foreground, background, classes, 4)
    assert classes.dtype == torch.long and classes.shape == (2, *SIZE)
    assert set(classes.unique().tolist()) <= {0, 1, 2, 3, 4}
    expected = classes[:, None] * (foreground - background)
    torch.testing.assert_close((fused - background) * 4, expected, atol=1e-6, rtol=0)


def _slow_grid(size, block, offsets, tile_values) -> np.ndarray:
    """An independent version: every voxel asks which block it lies in."""
    counts = [edge // length for edge, length in zip(size, block, strict=True)]
    result = np.zeros(size, dtype=int)
    for voxel in itertools.product(*(range(edge) for edge in size)):
        index = [(v - o) // b if v >= o else -1 for v, o, b in zip(voxel, offsets, block, strict=True)]
        if all(0 <= i < n for i, n in zip(index, counts, strict=True)):
            result[voxel] = tile_values[tuple(index)]
    return result


@pytest.mark.parametrize("seed", range(6))
def test_grid_equals_a_slow_loop_with_the_same_draws(seed: int) -> None:
    least, most = (2, 3, 2), (5, 6, 7)
    generator = _generator(seed)
    block = [int(torch.randint(low, high + 1, (), generator=generator)) for low, high in zip(least, most, strict=True)]
    counts = [edge // length for edge, length in zip(SIZE, block, strict=True)]
    offsets = [int(torch.randint(0, e % b + 1, (), generator=generator)) for e, b in zip(SIZE, block, strict=True)]
    order = torch.randperm(math.prod(counts), generator=generator)
    chosen = order[: int(0.7 * math.prod(counts))]
    values = np.zeros(math.prod(counts), dtype=int)
    values[chosen.numpy()] = torch.randint(1, 5, (len(chosen),), generator=generator).numpy()

    slow = _slow_grid(SIZE, block, offsets, values.reshape(counts))
    assert np.array_equal(grid_map(SIZE, least, most, 0.7, 4, _generator(seed)).numpy(), slow)


def test_grid_has_exactly_the_share_of_foreground_blocks_at_every_drawn_size() -> None:
    """Block edges are the first draws of the generator, offsets the next; the blocks are found again from them."""
    size, least, most = (12, 15, 11), (2, 3, 2), (5, 6, 7)
    for seed in range(1000):
        generator = _generator(seed)
        block = [int(torch.randint(a, b + 1, (), generator=generator)) for a, b in zip(least, most, strict=True)]
        counts = [edge // length for edge, length in zip(size, block, strict=True)]
        offsets = [int(torch.randint(0, e % b + 1, (), generator=generator)) for e, b in zip(size, block, strict=True)]
        classes = grid_map(size, least, most, 0.7, 4, _generator(seed))
        grid = tuple(slice(o, o + n * b) for o, n, b in zip(offsets, counts, block, strict=True))
        shape = [part for pair in zip(counts, block, strict=True) for part in pair]
        blocks = classes[grid].reshape(shape).permute(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), -1)
        assert bool((blocks == blocks[:, :1]).all())
        assert int((blocks[:, 0] > 0).sum()) == math.floor(0.7 * len(blocks))
        assert int((classes > 0).sum()) == int((blocks > 0).sum()), "a margin is foreground"


def test_margins_outside_the_grid_are_class_0() -> None:
    classes = grid_map((7, 7, 7), (3, 3, 3), (3, 3, 3), 1.0, 1, _generator(3))
    assert int((classes == 0).sum()) == 7**3 - 6**3


def test_boxes_later_ones_win_and_the_border_clips() -> None:
    painted = paint_boxes((6, 6), [((-2, -2), (4, 4), 1), ((1, 1), (2, 9), 2), ((5, 5), (4, 4), 3)])
    expected = torch.zeros(6, 6, dtype=torch.long)
    expected[:2, :2] = 1
    expected[1:3, 1:] = 2
    expected[5, 5] = 3
    assert torch.equal(painted, expected)


def test_box_classes_are_uniform() -> None:
    counts = torch.zeros(5)
    for seed in range(300):
        classes = box_map((1, 1), (1, 1), (1, 1), (10, 40), 4, _generator(seed))  # the last box is all that is seen
        counts[classes.item()] += 1
    assert counts[0] == 0
    expected, deviation = 75, math.sqrt(300 * 0.25 * 0.75)
    assert bool(((counts[1:] - expected).abs() < 4 * deviation).all())


def _slow_boxes(size, least, most, count, classes, generator) -> np.ndarray:
    """An independent version: every voxel asks which boxes it lies in and takes the last."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    boxes = []
    for _ in range(draw(*count)):
        edges = [draw(low, high) for low, high in zip(least, most, strict=True)]
        centres = [draw(0, edge - 1) for edge in size]
        boxes.append((centres, edges, draw(1, classes)))
    result = np.zeros(size, dtype=int)
    for voxel in itertools.product(*(range(edge) for edge in size)):
        for centres, edges, value in boxes:
            if all(0 <= v - (c - e // 2) < e for v, c, e in zip(voxel, centres, edges, strict=True)):
                result[voxel] = value
    return result


@pytest.mark.parametrize("seed", range(4))
def test_boxes_equal_a_slow_loop_with_the_same_draws(seed: int) -> None:
    size, least, most, count = (9, 12, 10), (2, 3, 2), (5, 7, 6), (3, 9)
    slow = _slow_boxes(size, least, most, count, 4, _generator(seed))
    assert np.array_equal(box_map(size, least, most, count, 4, _generator(seed)).numpy(), slow)


def test_a_single_box_has_edges_from_the_smallest_to_the_largest() -> None:
    """Boxes that the border does not clip are measured in the map itself."""
    seen: set[int] = set()
    for seed in range(200):
        found = torch.nonzero(box_map((40, 40), (3, 5), (6, 9), (1, 1), 1, _generator(seed)))
        low, high = found.amin(0), found.amax(0)
        edges = (high - low + 1).tolist()
        assert len(found) == edges[0] * edges[1], "not one box"
        if bool((low > 0).all() and (high < 39).all()):
            assert 3 <= edges[0] <= 6 and 5 <= edges[1] <= 9
            seen.add(edges[0])
    assert seen == {3, 4, 5, 6}


def test_the_box_map_has_options_of_its_own() -> None:
    """One box of the whole patch's edge: what the grid's largest block says does not matter."""
    options = {"fusion_map": "boxes", "fusion_block_min": 1.0, "fusion_box_max": 1.0, "fusion_block_max": 0.1}
    _, task = _task(**options, fusion_boxes_min=1, fusion_boxes_max=1)
    views = _views(6)
    maps = task.sample(views, _generator())["map"]
    assert all(len(found.unique()) <= 2 for found in maps)
    assert (maps > 0).float().mean() > 0.25
    grid = _task(fusion_map="boxes")[1].sample(views, _generator())["map"]
    least, most = [2, 2, 2], [10, 10, 10]
    assert torch.equal(grid[0], box_map((16, 16, 16), least, most, (10, 40), 4, _generator()))


def test_class_frequencies_of_the_published_block_ranges() -> None:
    """Figures of the method: grid .437 and about .141 each, at 64x128x128 with blocks of 5-20 and 8-32."""
    shares = torch.zeros(5)
    for seed in range(40):
        classes = grid_map((64, 128, 128), (5, 8, 8), (20, 32, 32), 0.7, 4, _generator(seed))
        shares += torch.bincount(classes.flatten(), minlength=5) / classes.numel() / 40
    assert shares[0] == pytest.approx(0.437, abs=0.03)
    assert shares[1:].tolist() == pytest.approx([0.141] * 4, abs=0.03)


# --- intensity -----------------------------------------------------------------------------------


def test_contrast_maps_the_four_points_and_is_monotone() -> None:
    values = torch.linspace(-3, 9, 101)[None]
    low, high = torch.tensor([[-2.0]]), torch.tensor([[7.0]])
    mapped = adaptive_contrast(torch.cat([values, low, high], 1), low, high)[0]
    assert mapped[0] == pytest.approx(0) and mapped[100] == pytest.approx(1)
    assert mapped[101] == pytest.approx(0.1) and mapped[102] == pytest.approx(0.9)
    assert bool((mapped[:101].diff() > 0).all())


@pytest.mark.parametrize("values", [torch.zeros(1, 50), torch.cat([torch.zeros(1, 49), torch.ones(1, 1)], 1)])
def test_contrast_of_air_is_finite(values: Tensor) -> None:
    """The percentiles coincide; the formula as published would divide by zero."""
    zero = torch.zeros(1, 1)
    mapped = adaptive_contrast(values, zero, zero)
    assert bool(mapped.isfinite().all()) and mapped.min() >= 0 and mapped.max() <= 1


def test_inversion_is_common_to_both_sub_volumes() -> None:
    pair = torch.randn(1, 2, 1, 6, 6, 6)
    draw = {
        "low": torch.full((1, 2, 1), 1.0),
        "high": torch.full((1, 2, 1), 99.0),
        "gamma": torch.ones(1, 2, 1),
        "invert": torch.tensor([[False]]),
    }
    plain = changed_intensity(pair, draw)
    inverted = changed_intensity(pair, {**draw, "invert": torch.tensor([[True]])})
    torch.testing.assert_close(inverted, 1 - plain)
    for index in (0, 1):
        both = torch.stack([plain[0, index].flatten(), inverted[0, index].flatten()])
        assert torch.corrcoef(both)[0, 1] == pytest.approx(-1, abs=1e-5)


def test_standardised_images_have_mean_0_and_deviation_1_and_flat_ones_stay_finite() -> None:
    images = torch.cat([torch.randn(1, 2, 5, 5, 5) * 7 + 3, torch.full((1, 2, 5, 5, 5), 4.0)])
    result = standardised(images)
    assert result[0].mean((1, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(result[0].std((1, 2, 3), correction=0), torch.ones(2))
    assert bool((result[1] == 0).all())


# --- loss ----------------------------------------------------------------------------------------


def test_soft_dice_against_a_loop_and_its_optimum() -> None:
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    probabilities = logits.softmax(1)
    scores = []
    for sample in range(2):
        for value in range(3):
            p, t = probabilities[sample, value], (target[sample] == value).float()
            scores.append((2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    torch.testing.assert_close(soft_dice_loss(logits, target), 1 - torch.stack(scores).mean())
    perfect = 100 * nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert soft_dice_loss(perfect, target) == pytest.approx(0, abs=1e-5)


def test_hard_dice_by_hand() -> None:
    predicted, target = torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 2]])
    assert hard_dice(predicted, target, 3).item() == pytest.approx((2 / 3 + 1 + 1) / 3)


# --- the task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s", "CTNet-identity"])
@pytest.mark.parametrize("size", [(16, 16, 16), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_initial_loss_and_gradients_in_encoder_and_decoder(subject: str, size: tuple[int, ...], channels: int) -> None:
    torch.manual_seed(0)
    network, task = _task(_network(subject, size, channels), channels, size)
    views = _views(2, channels, size)
    result = task(network, task.targets(views, task.sample(views, _generator())))
    assert result["loss"].item() == pytest.approx(0.5 * (math.log(5) + 0.8), abs=0.4)
    result["loss"].backward()
    first, last = next(network.encoder.parameters()), network.decoder.stages[-1].convs[-1].conv.weight
    for parameter in (first, last, task.head.weight):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.decoder.seg_layers.parameters())


@pytest.mark.parametrize("subject", [UNET, RESENC, "CTNet-s"])
def test_features_are_what_the_finest_head_reads(subject: str) -> None:
    network = _network(subject, (16, 16, 16)).eval()
    network.decoder.deep_supervision = False
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(network.decoder.seg_layers[-1](full_resolution_features(network, image)), network(image))


def test_the_same_generator_gives_the_same_targets() -> None:
    _, task = _task()
    views = _views()
    first, second = (task.targets(views, task.sample(views, _generator(5))) for _ in range(2))
    assert torch.equal(first["map"], second["map"]) and torch.equal(first["fused"], second["fused"])
    other = task.targets(views, task.sample(views, _generator(6)))
    assert not torch.equal(first["map"], other["map"])


def test_a_pair_from_the_batch_takes_the_next_scan_as_background() -> None:
    _, task = _task(fusion_pair="batch", fusion_intensity=False, fusion_restandardise=False)
    views = _views(3)
    draw = {**task.sample(views, _generator()), "map": torch.zeros(3, 16, 16, 16, dtype=torch.long)}
    fused = task.targets(views, draw)["fused"]
    torch.testing.assert_close(fused, views["pair"][:, 0].roll(1, 0))
    with pytest.raises(PlanError, match="fusion_pair"):
        task.sample(_views(1), _generator())


def test_a_pair_from_the_batch_is_inverted_together() -> None:
    """Foreground and background of each sample, each against its own scan: both run along or both against."""
    _, task = _task(fusion_pair="batch", fusion_restandardise=False)
    views = _views(3)
    draw = {**task.sample(views, _generator()), "invert": torch.tensor([[True], [False], [True]])}
    shown = {
        value: task.targets(views, {**draw, "map": torch.full((3, 16, 16, 16), value)})["fused"] for value in (0, 4)
    }
    for sample, inverted in enumerate((True, False, True)):
        foreground, background = views["pair"][sample, 0], views["pair"][sample - 1, 0]
        for made, scan in ((shown[4], foreground), (shown[0], background)):
            agreement = torch.corrcoef(torch.stack([made[sample].flatten(), scan.flatten()]))[0, 1]
            assert (agreement < -0.8) if inverted else (agreement > 0.8)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_inversions_is_an_option(share: float) -> None:
    _, task = _task(fusion_inversion=share)
    assert bool((task.sample(_views(20), _generator())["invert"] == bool(share)).all())


def test_constant_sub_volumes_make_the_map_readable_from_brightness() -> None:
    """I_fg = 1 and I_bg = 0 give X = Y / K exactly, which a 1x1 convolution separates."""
    _, task = _task(fusion_intensity=False, fusion_restandardise=False)
    views = {"pair": torch.stack([torch.ones(2, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16)], 1)}
    batch = task.targets(views, task.sample(views, _generator()))
    torch.testing.assert_close(batch["fused"][:, 0] * 4, batch["map"].float())
    head = nn.Conv3d(1, 5, 1)
    optimizer = torch.optim.LBFGS(head.parameters(), lr=1, max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(batch["fused"]), batch["map"])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 0.1


def test_bfloat16_is_finite() -> None:
    network, task = _task()
    views = _views()
    batch = task.targets(views, task.sample(views, _generator()))
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(task(network, batch)["loss"].isfinite())


def test_it_learns_to_segment_fusions_of_two_scans() -> None:
    torch.manual_seed(0)
    network, task = _task()
    views = _views()
    batch = task.targets(views, task.sample(views, _generator()))
    optimizer = torch.optim.Adam([*network.parameters(), *task.parameters()], lr=3e-3)
    losses, dices = [], []
    for _ in range(60):
        optimizer.zero_grad()
        result = task(network, batch)
        result["loss"].backward()
        optimizer.step()
        losses.append(result["loss"].item())
        dices.append(result["dice"].item())
    assert losses[-1] < 0.75 * losses[0]
    assert dices[-1] > 0.3 and dices[-1] > 2 * dices[0]


@pytest.mark.parametrize(
    "options",
    [
        {"fusion_classes": 0},
        {"fusion_block_min": 0.5, "fusion_block_max": 0.2},
        {"fusion_block_min": 0.0},
        {"fusion_block_max": 1.5},
        {"fusion_foreground": 7.0},
        {"fusion_foreground": -0.5},
        {"fusion_foreground": math.nan},
        {"fusion_foreground": 0.0},
        {"fusion_box_max": 2.0},
        {"fusion_map": "boxes", "fusion_block_min": 0.3, "fusion_box_max": 0.2},
        {"fusion_boxes_min": 0},
        {"fusion_boxes_min": 9, "fusion_boxes_max": 5},
        {"fusion_inversion": 1.5},
    ],
)
def test_impossible_options_are_refused_when_planning(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fusion_"):
        VolumeFusionOptions(**options)
    with pytest.raises(PlanError, match="ctnet option fusion_"):
        read_options(options)


def test_what_cannot_fuse_this_patch_or_this_batch_is_refused_before_a_training() -> None:
    with pytest.raises(PlanError, match="fusion_block_max: the largest blocks leave 1 in a patch"):
        _task(fusion_block_max=0.6)
    _task(fusion_block_max=0.5)
    _task(fusion_block_max=0.6, fusion_foreground=1.0)
    _task(fusion_block_max=0.6, fusion_map="boxes")
    network = _network(UNET, (16, 16, 16))
    context = PretextContext((16,) * 3, (16,) * 3, (1.0,) * 3, None, 1, batch_size=1)
    VolumeFusion(network, context, VolumeFusionOptions())
    with pytest.raises(PlanError, match="fusion_pair: batch needs 2 scans"):
        VolumeFusion(network, context, VolumeFusionOptions(fusion_pair="batch"))
