"""The box of a scan in which the structures lie: as large as the training says, where a coarse pass finds them.

Where each structure lies in the box is known from the training cases, so each votes for the box's middle. A coarse pass
also finds what is none of them, above all outside of what the training cases showed; such votes do not meet.
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
MOST_OUTSIDE = 0.2
"""Of the voxels that hang together with what lies in the box; above, the box is too small."""
_BLOCK_MM = 4.0
"""Votes are counted in steps of this size."""
_SLACK_MM = 4.0
"""How much further than in any training case a structure may lie from its place."""
_FOUND = 0.25
"""A structure is found where this share of its smallest training volume is in its place."""
_FEWEST_FOUND = 0.5

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Known:
    """A structure as the training cases had it.

    Attributes:
        structure: Which.
        usual_ml, least_ml: Median and smallest volume.
        low, high: Where it lay in any of them, in mm from the box's middle along the axes of a grid.
    """

    structure: Structure
    usual_ml: float
    least_ml: float
    low: tuple[float, ...]
    high: tuple[float, ...]


def known_structures(
    structures: Sequence[Structure],
    volumes_ml: Mapping[str, Sequence[float]],
    places: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> list[Known]:
    """Those that most training cases have, with their places along the axes of a grid."""
    found = []
    for structure in structures:
        volumes = volumes_ml.get(structure.name, ())
        if structure.name in places and volumes and np.median(volumes) > 0:
            low, high = places[structure.name]
            least = min(volume for volume in volumes if volume > 0)
            found.append(Known(structure, float(np.median(volumes)), least, tuple(low), tuple(high)))
    return found


def find_middle(
    labels: NDArray[Any], known: Sequence[Known], spacing: Sequence[float]
) -> tuple[tuple[float, ...], list[str]]:
    """Where most structures lie round a point as they did in the training cases.

    Each structure counts up to its usual volume, so that a large false one does not outweigh the others.

    Args:
        labels: Of a coarse pass, (*grid).
        spacing: mm along the axes of ``labels``.

    Returns:
        The middle of the box in voxels' edges, and the structures that are in their places round it.
    """
    blocks = [max(1, round(_BLOCK_MM / step)) for step in spacing]
    unit = [block * step for block, step in zip(blocks, spacing, strict=True)]
    voxel_ml = math.prod(spacing) / 1000.0
    votes: NDArray[np.float64] = np.zeros([1 + math.ceil(n / b) for n, b in zip(labels.shape, blocks, strict=True)])
    for one in known:
        low = [math.floor((mm - _SLACK_MM) / size) for mm, size in zip(one.low, unit, strict=True)]
        high = [math.ceil((mm + _SLACK_MM) / size) for mm, size in zip(one.high, unit, strict=True)]
        volume = _sums_round(_block_sums(one.structure.mask(labels), blocks), low, high) * voxel_ml
        votes += np.minimum(volume / one.usual_ml, 1.0)
    best = np.argwhere(votes >= votes.max() - 1e-9)
    middle = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()] * blocks
    return _refined(labels, known, spacing, middle)


def is_found(known: Sequence[Known], found: Sequence[str]) -> bool:
    """Whether enough of the structures are there to trust the box."""
    return len(found) > 0 and len(found) >= _FEWEST_FOUND * len(known)


def around(centre: Sequence[float], size: Sequence[int], grid: Sequence[int]) -> Slices:
    """A box of ``size`` voxels round a point of a grid, moved inside where it would reach out."""
    starts = [round(middle - count / 2) for middle, count in zip(centre, size, strict=True)]
    firsts = [max(0, min(s, g - n)) for s, n, g in zip(starts, size, grid, strict=True)]
    return tuple(slice(first, first + count) for first, count in zip(firsts, size, strict=True))


def cut_labels(labels: NDArray[Any], part: Slices, grid: Sequence[int]) -> frozenset[int]:
    """The labels of a box that touch such of its faces as are not the grid's own: what continues there is missing."""
    found: set[int] = set()
    for axis, (place, length) in enumerate(zip(part, grid, strict=True)):
        open_ends = [end for end, inner in ((0, place.start > 0), (-1, place.stop < length)) if inner]
        for end in open_ends:
            found.update(int(value) for value in np.unique(labels.take(end, axis)) if value)
    return frozenset(found)


def share_outside(labels: NDArray[Any], part: Slices) -> float:
    """Of the connected components that reach into the box: the share of their voxels that lies outside."""
    components, _ = ndimage.label(labels > 0)
    counts = np.bincount(components.ravel())
    inner = np.bincount(components[part].ravel(), minlength=len(counts))
    touching = inner[1:] > 0
    total = int(counts[1:][touching].sum())
    return 1.0 - int(inner[1:][touching].sum()) / total if total else 0.0


def left_out(
    labels: NDArray[Any], part: Slices, known: Sequence[Known], spacing: Sequence[float]
) -> dict[str, float]:
    """Structure → ml that lie outside of the box, where that is more than inside."""
    voxel_ml = math.prod(spacing) / 1000.0
    found = {}
    for one in known:
        mask = one.structure.mask(labels)
        inside, every = int(mask[part].sum()), int(mask.sum())
        if every - inside > inside:
            found[one.structure.name] = (every - inside) * voxel_ml
    return found


def _refined(
    labels: NDArray[Any], known: Sequence[Known], spacing: Sequence[float], middle: NDArray[np.intp]
) -> tuple[tuple[float, ...], list[str]]:
    """The middle to the voxel: the mean of what each structure found in its place says."""
    steps, voxel_ml = np.array(spacing), math.prod(spacing) / 1000.0
    found, moves = [], []
    for one in known:
        low = np.clip(np.floor(middle + (np.array(one.low) - _SLACK_MM) / steps), 0, None).astype(int)
        high = np.clip(np.ceil(middle + (np.array(one.high) + _SLACK_MM) / steps), 0, None).astype(int)
        window = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
        places = np.argwhere(one.structure.mask(labels[window]))
        if len(places) * voxel_ml >= _FOUND * one.least_ml:
            usual = middle + (np.array(one.low) + np.array(one.high)) / 2 / steps
            moves.append(low + places.mean(axis=0) + 0.5 - usual)
            found.append(one.structure.name)
    moved = middle + np.mean(moves, axis=0) if moves else middle
    return tuple(float(value) for value in moved), found


def _block_sums(mask: NDArray[np.bool_], blocks: Sequence[int]) -> NDArray[np.int64]:
    """How many voxels of each block are set; the last one along an axis may be smaller."""
    sums = mask.astype(np.int64)
    for axis, block in enumerate(blocks):
        sums = np.add.reduceat(sums, range(0, sums.shape[axis], block), axis=axis)
    return sums


def _sums_round(values: NDArray[np.int64], low: Sequence[int], high: Sequence[int]) -> NDArray[np.int64]:
    """Sums from ``low`` to ``high`` round every edge between blocks, as far as they lie inside."""
    for axis, (first, last) in enumerate(zip(low, high, strict=True)):
        length = values.shape[axis]
        total = np.insert(np.cumsum(values, axis=axis), 0, 0, axis=axis)
        edges = np.arange(length + 1)
        begin, end = np.clip(edges + first, 0, length), np.clip(edges + last, 0, length)
        values = total.take(end, axis) - total.take(begin, axis)
    return values
