"""Metrics against a slow reference that shares no code with the library, and the conventions for empty structures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.metrics import Structure, dice, score, structures_from_labels, surface_scores

Mask = NDArray[np.bool_]
EMPTY = np.zeros((6, 6, 6), dtype=np.bool_)


def _box(shape: tuple[int, ...], start: tuple[int, ...], end: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(slice(a, b) for a, b in zip(start, end, strict=True))] = True
    return mask


def _cell_area(cell: Mask, spacing: tuple[float, ...]) -> float:
    """Area of the surface through one 2×2×2 neighbourhood, by scikit-image's marching cubes."""
    vertices, faces, _, _ = marching_cubes(cell.astype(np.float32), 0.5, spacing=spacing)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _surface(mask: Mask, spacing: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions in mm and areas in mm² of the elements, one for each mixed 2×2×2 neighbourhood, by plain loops."""
    padded = np.pad(mask, 1)
    points, areas = [], []
    for i in range(padded.shape[0] - 1):
        for j in range(padded.shape[1] - 1):
            for k in range(padded.shape[2] - 1):
                cell = padded[i : i + 2, j : j + 2, k : k + 2]
                if cell.any() and not cell.all():
                    points.append([i * spacing[0], j * spacing[1], k * spacing[2]])
                    areas.append(_cell_area(cell, spacing))
    return np.array(points), np.array(areas)


def _reference(truth: Mask, prediction: Mask, spacing: tuple[float, ...]) -> tuple[float, float]:
    (p, p_area), (q, q_area) = _surface(truth, spacing), _surface(prediction, spacing)
    distance = np.linalg.norm(p[:, None] - q[None], axis=-1)
    forward, backward = distance.min(axis=1), distance.min(axis=0)
    hd95 = max(_percentile(forward, p_area), _percentile(backward, q_area))
    total = (forward * p_area).sum() + (backward * q_area).sum()
    return hd95, total / (p_area.sum() + q_area.sum())


def _percentile(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    seen = 0.0
    for index in np.argsort(distances):
        seen += areas[index]
        if seen >= 0.95 * areas.sum() - 1e-9:
            return float(distances[index])
    return float(distances.max())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1)])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_boxes_agree_with_the_slow_reference(spacing: tuple[float, ...], shift: int) -> None:
    truth = _box((9, 10, 11), (2, 2, 2), (6, 7, 7))
    prediction = _box((9, 10, 11), (2, 2 + shift, 3), (5, 7 + shift, 8))

    hd95, assd, _ = surface_scores(truth, prediction, spacing)
    expected_hd95, expected_assd = _reference(truth, prediction, spacing)

    assert hd95 == pytest.approx(expected_hd95, abs=1e-6)
    # The two tables of triangles differ where a corner can be cut in two ways; boxes have few such places.
    assert assd == pytest.approx(expected_assd, rel=0.02)


def test_round_structures_that_touch_the_border_agree_with_the_slow_reference() -> None:
    spacing = (2.0, 1.0, 1.5)
    grid = np.stack(np.meshgrid(*[np.arange(10)] * 3, indexing="ij"), axis=-1) * spacing
    truth = np.linalg.norm(grid - np.array((2.0, 4.0, 6.0)), axis=-1) < 4.6
    prediction = np.linalg.norm(grid - np.array((3.0, 4.5, 6.0)), axis=-1) < 5.1

    hd95, assd, _ = surface_scores(truth, prediction, spacing)
    expected_hd95, expected_assd = _reference(truth, prediction, spacing)

    assert truth[0].any()
    assert hd95 == pytest.approx(expected_hd95, abs=1e-6)
    assert assd == pytest.approx(expected_assd, rel=0.02)


def test_distance_follows_the_spacing_of_its_axis() -> None:
    truth = _box((12, 12, 12), (3, 3, 3), (5, 9, 9))
    along_first = np.roll(truth, 4, axis=0)

    assert surface_scores(truth, along_first, (2.5, 1.0, 1.0))[0] == pytest.approx(10.0)
    assert surface_scores(truth, along_first, (0.5, 1.0, 1.0))[0] == pytest.approx(2.0)


def test_scores_by_hand() -> None:
    truth = _box((4, 4, 4), (0, 0, 0), (2, 2, 2))
    prediction = _box((4, 4, 4), (0, 0, 0), (2, 2, 3))

    scores = score(truth, prediction, (2.0, 1.0, 5.0))

    assert scores.dice == pytest.approx(2 * 8 / (8 + 12))
    assert scores.truth_ml == pytest.approx(0.08)
    assert scores.prediction_ml == pytest.approx(0.12)
    assert scores.hd95_mm == pytest.approx(5.0)


def test_nsd_counts_the_surface_within_the_tolerance() -> None:
    truth = _box((30, 30, 30), (5, 5, 5), (25, 25, 25))
    prediction = _box((30, 30, 30), (5, 5, 5), (25, 25, 28))  # one of six faces moved by three voxels

    assert surface_scores(truth, prediction, (1.0, 1.0, 1.0), 3.0)[2] == 1.0
    assert surface_scores(truth, prediction, (1.0, 1.0, 1.5), 3.0)[2] < 1.0
    # Beyond 1 mm lie the moved face and, of the four sides, what stands out on one side of it.
    points, areas = _surface(truth, (1.0, 1.0, 1.0))
    others, other_areas = _surface(prediction, (1.0, 1.0, 1.0))
    gaps = np.linalg.norm(points[:, None] - others[None], axis=-1)
    near = areas[gaps.min(axis=1) <= 1].sum() + other_areas[gaps.min(axis=0) <= 1].sum()
    expected = near / (areas.sum() + other_areas.sum())
    assert surface_scores(truth, prediction, (1.0, 1.0, 1.0), 1.0)[2] == pytest.approx(expected, abs=0.02)


def test_jaccard_volume_error_and_status() -> None:
    truth = _box((4, 4, 4), (0, 0, 0), (2, 2, 2))
    prediction = _box((4, 4, 4), (0, 0, 0), (2, 2, 3))
    scores = score(truth, prediction, (1.0, 1.0, 1.0))
    assert scores.jaccard == pytest.approx(8 / 12)
    assert scores.volume_error_percent == pytest.approx(50.0)
    empty = np.zeros_like(truth)
    statuses = [score(a, b, (1.0, 1.0, 1.0)).status for a in (truth, empty) for b in (prediction, empty)]
    assert statuses == ["ok", "missed", "spurious", "absent"]
    assert math.isnan(score(empty, prediction, (1.0, 1.0, 1.0)).volume_error_percent)


def test_perfect_prediction() -> None:
    mask = _box((6, 6, 6), (1, 1, 1), (4, 5, 4))

    scores = score(mask, mask, (1.0, 1.0, 1.0))

    assert (scores.dice, scores.hd95_mm, scores.assd_mm, scores.nsd) == (1.0, 0.0, 0.0, 1.0)


def test_two_dimensional_masks() -> None:
    truth = _box((9, 9), (2, 2), (5, 5))

    scores = score(truth, np.roll(truth, 2, axis=1), (1.0, 0.5))

    assert scores.hd95_mm == pytest.approx(1.0)
    assert scores.truth_ml == pytest.approx(9 * 0.5 / 1000)


def test_both_empty_is_not_defined() -> None:
    scores = score(EMPTY, EMPTY, (1.0, 1.0, 1.0))

    assert all(math.isnan(v) for v in (scores.dice, scores.jaccard, scores.nsd, scores.hd95_mm, scores.assd_mm))
    assert (scores.truth_ml, scores.prediction_ml) == (0.0, 0.0)


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_scores_zero_and_has_no_distance(swap: bool) -> None:
    full = _box((6, 6, 6), (1, 1, 1), (4, 4, 4))
    pair = (EMPTY, full) if swap else (full, EMPTY)

    scores = score(*pair, (1.0, 1.0, 1.0))

    assert (scores.dice, scores.jaccard, scores.nsd) == (0.0, 0.0, 0.0)
    assert math.isnan(scores.hd95_mm)
    assert math.isnan(scores.assd_mm)


def test_other_shape_or_spacing_is_refused() -> None:
    with pytest.raises(DataError, match="one grid"):
        score(EMPTY, EMPTY[:5], (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="spacing"):
        score(EMPTY, EMPTY, (1.0, 1.0))


def test_regions_are_unions_of_labels() -> None:
    structures = structures_from_labels({"background": 0, "whole": [1, 2, 3], "core": (2, 3), "edge": 1, "ignore": 4})
    labels = np.array([0, 1, 2, 3, 4])

    assert structures == (Structure("whole", (1, 2, 3)), Structure("core", (2, 3)), Structure("edge", (1,)))
    assert structures[0].mask(labels).tolist() == [False, True, True, True, False]
    assert dice(structures[1].mask(labels), structures[0].mask(labels)) == pytest.approx(0.8)


def test_only_background_is_refused() -> None:
    with pytest.raises(DataError, match="no structure"):
        structures_from_labels({"background": 0})
