"""The box of a scan in which the structures lie: as large as the training says, where a coarse pass finds them.

A box is never trusted blindly: where the coarse pass finds too few structures, or what it finds reaches far out of a
box of that size, there is no box and a reason instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctnet_nnunet.evaluation.metrics import Structure

MARGIN_MM = 10.0
"""Round the largest extent that the structures had in any training case, on each side."""
_BLOCK_MM = 4.0
"""The window is first moved in steps of this size, then centred to the voxel."""
_FOUND = 0.25
"""A structure is found where this share of its smallest training volume is there."""
_FEWEST_FOUND = 0.5
_MOST_OUTSIDE = 0.2
"""Of the voxels that hang together with what lies in the box."""
_STRAY = 0.5
"""Percent of the voxels at either end that do not count when the box is centred."""

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Finding:
    """What a coarse pass says.

    Attributes:
        part: The box in the grid of the labels.
        reason: Why it cannot be trusted; empty where it can.
        left_out: Structure → ml that lie outside, where that is more than inside.
    """

    part: Slices
    reason: str
    left_out: dict[str, float]


def find_box(
    labels: NDArray[Any],
    structures: Sequence[Structure],
    trained_ml: Mapping[str, Sequence[float]],
    spacing: Sequence[float],
    size: Sequence[int],
) -> Finding:
    """Where a box of ``size`` voxels holds most of the structures.

    Each structure counts up to its median training volume, so that a large false one does not outweigh the others.

    Args:
        labels: Of a coarse pass, (*grid).
        trained_ml: Structure → its volumes in the training cases.
        spacing: mm along the axes of ``labels``.
        size: Voxels along them, at most the grid's.
    """
    expected = [s for s in structures if _usual(trained_ml.get(s.name, ())) > 0]
    voxel_ml = math.prod(spacing) / 1000.0
    start = _fullest(labels, expected, trained_ml, spacing, size)
    part = _centred(labels, _part(start, size), size)
    inside, outside = dict[str, float](), dict[str, float]()
    for structure in expected:
        mask = structure.mask(labels)
        inside[structure.name] = int(mask[part].sum()) * voxel_ml
        outside[structure.name] = int(mask.sum()) * voxel_ml - inside[structure.name]
    left_out = {name: volume for name, volume in outside.items() if volume > inside[name]}
    found = [name for name, volume in inside.items() if volume >= _FOUND * min(v for v in trained_ml[name] if v > 0)]
    if not expected or len(found) < _FEWEST_FOUND * len(expected):
        return Finding(part, f"the coarse pass found {len(found)} of {len(expected)} structures", left_out)
    if (share := _outside_of_what_is_inside(labels > 0, part)) > _MOST_OUTSIDE:
        return Finding(part, f"{100 * share:.0f} % of what the coarse pass found reaches out of the box", left_out)
    return Finding(part, "", left_out)


def around(centre: Sequence[float], size: Sequence[int], grid: Sequence[int]) -> Slices:
    """A box of ``size`` voxels round a point of a grid, moved inside where it would reach out."""
    starts = [round(middle - count / 2) for middle, count in zip(centre, size, strict=True)]
    return _part([max(0, min(s, g - n)) for s, n, g in zip(starts, size, grid, strict=True)], size)


def cut_labels(labels: NDArray[Any], part: Slices, grid: Sequence[int]) -> frozenset[int]:
    """The labels of a box that touch such of its faces as are not the grid's own: what continues there is missing."""
    found: set[int] = set()
    for axis, (place, length) in enumerate(zip(part, grid, strict=True)):
        open_ends = [end for end, inner in ((0, place.start > 0), (-1, place.stop < length)) if inner]
        for end in open_ends:
            found.update(int(value) for value in np.unique(labels.take(end, axis)) if value)
    return frozenset(found)


def _usual(volumes: Sequence[float]) -> float:
    """The median volume in ml; 0 for what half of the training cases lack."""
    return float(np.median(volumes)) if volumes else 0.0


def _fullest(
    labels: NDArray[Any],
    structures: Sequence[Structure],
    trained_ml: Mapping[str, Sequence[float]],
    spacing: Sequence[float],
    size: Sequence[int],
) -> list[int]:
    """First voxel of the fullest box; of equal ones the middle."""
    blocks = [max(1, round(_BLOCK_MM / step)) for step in spacing]
    window = [max(1, math.ceil(count / block)) for count, block in zip(size, blocks, strict=True)]
    voxel_ml = math.prod(spacing) / 1000.0
    score: NDArray[np.float64] | float = 0.0
    for structure in structures:
        volume = _window_sums(_block_sums(structure.mask(labels), blocks), window) * voxel_ml
        score = score + np.minimum(volume / _usual(trained_ml[structure.name]), 1.0)
    best = np.argwhere(np.asarray(score) >= np.max(score) - 1e-9)
    if best.shape[1] != labels.ndim:  # no structure to look for
        return [0] * labels.ndim
    middle = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    ends = [length - count for length, count in zip(labels.shape, size, strict=True)]
    return [min(int(index) * block, end) for index, block, end in zip(middle, blocks, ends, strict=True)]


def _block_sums(mask: NDArray[np.bool_], blocks: Sequence[int]) -> NDArray[np.int64]:
    """How many voxels of each block are set; the last one along an axis may be smaller."""
    sums = mask.astype(np.int64)
    for axis, block in enumerate(blocks):
        sums = np.add.reduceat(sums, range(0, sums.shape[axis], block), axis=axis)
    return sums


def _window_sums(values: NDArray[np.int64], window: Sequence[int]) -> NDArray[np.int64]:
    """Sums over every window that lies inside."""
    for axis, wanted in enumerate(window):
        count = min(wanted, values.shape[axis])
        total = np.insert(np.cumsum(values, axis=axis), 0, 0, axis=axis)
        length = total.shape[axis]
        values = total.take(range(count, length), axis) - total.take(range(length - count), axis)
    return values


def _centred(labels: NDArray[Any], part: Slices, size: Sequence[int]) -> Slices:
    """The box moved so that what it holds lies in its middle, but for stray voxels at the ends."""
    places = np.argwhere(labels[part] > 0)
    if not len(places):
        return part
    low, high = np.percentile(places, (_STRAY, 100 - _STRAY), axis=0)
    first = np.array([place.start for place in part])
    return around((first + (low + high + 1) / 2).tolist(), size, labels.shape)


def _outside_of_what_is_inside(mask: NDArray[np.bool_], part: Slices) -> float:
    """Of the connected components that reach into the box: the share of their voxels that lies outside."""
    components, _ = ndimage.label(mask)
    counts = np.bincount(components.ravel())
    inner = np.bincount(components[part].ravel(), minlength=len(counts))
    touching = inner[1:] > 0
    total = int(counts[1:][touching].sum())
    return 1.0 - int(inner[1:][touching].sum()) / total if total else 0.0


def _part(start: Sequence[int], size: Sequence[int]) -> Slices:
    return tuple(slice(int(first), int(first) + int(count)) for first, count in zip(start, size, strict=True))
