"""nnU-Net's sliding window over any engine: the same tiles, mirrors, weights, and order of sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.engine import Engine

Tile = tuple[slice | int, ...]


@dataclass(frozen=True)
class Window:
    """How a grid is covered.

    Attributes:
        patch: In voxels; two axes for a 2d configuration, which takes slice after slice.
        step: Of the patch, 0 to 1.
        mirror_axes: Axes of the patch that are mirrored, in all combinations.
        heads: Channels of the logits.
    """

    patch: tuple[int, ...]
    step: float
    mirror_axes: tuple[int, ...]
    heads: int

    @property
    def mirrors(self) -> list[tuple[int, ...]]:
        """Axes to flip in a tensor (1, C, *patch), in nnU-Net's order; the first is none."""
        axes = [axis + 2 for axis in self.mirror_axes]
        return [flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)]

    def patch_in(self, axes: int) -> tuple[int, ...]:
        """The patch in a grid of so many axes: a 2d one is a slice of one voxel."""
        return (*(1,) * (axes - len(self.patch)), *self.patch)

    def starts(self, grid: Sequence[int]) -> list[list[int]]:
        """Where tiles begin, axis by axis; ``grid`` is at least as large as the patch."""
        if len(self.patch) < len(grid):
            steps = compute_steps_for_sliding_window(tuple(grid[1:]), self.patch, self.step)
            return [list(range(grid[0])), *steps]
        return compute_steps_for_sliding_window(tuple(grid), self.patch, self.step)

    def count(self, grid: Sequence[int]) -> int:
        """How many tiles cover a grid."""
        return math.prod(len(starts) for starts in self.starts(grid))

    def tiles(self, starts: Sequence[Sequence[int]]) -> list[Tile]:
        """Index of each tile into an image (C, *grid)."""
        flat = len(self.patch) < len(starts)
        spatial = [slices_of(axis, size) for axis, size in zip(starts[flat:], self.patch, strict=True)]
        first: list[Sequence[slice | int]] = [list(starts[0])] if flat else []
        return [(slice(None), *tile) for tile in itertools.product(*first, *spatial)]


def slices_of(starts: Sequence[int], size: int) -> list[slice]:
    """A slice of ``size`` voxels from each start."""
    return [slice(start, start + size) for start in starts]


def slide(
    image: Tensor, engine: Engine, window: Window, starts: Sequence[Sequence[int]], passed: Callable[[], None]
) -> Tensor:
    """Logits (heads, *grid) in half precision, as nnU-Net sums them, of an image (C, *grid).

    Every voxel must lie in a tile. ``passed`` is called behind each forward pass.

    Raises:
        DataError: If the network's output is not finite.
    """
    tiles, mirrors = window.tiles(starts), window.mirrors
    image = image.to(engine.device)
    logits = torch.zeros((window.heads, *image.shape[1:]), dtype=torch.half, device=engine.device)
    weight = torch.zeros(image.shape[1:], dtype=torch.half, device=engine.device)
    gaussian = compute_gaussian(window.patch, sigma_scale=1 / 8, value_scaling_factor=10, device=engine.device)
    outputs = engine.run(_patches(image, tiles, mirrors))
    for tile in tiles:
        total = next(outputs)
        passed()
        for flip in mirrors[1:]:
            total += torch.flip(next(outputs), flip)
            passed()
        total /= len(mirrors)
        total *= gaussian
        logits[tile] += total[0]
        weight[tile[1:]] += gaussian
    for head in logits:  # one by one: no second array of this size
        torch.div(head, weight, out=head)
        if not torch.isfinite(head).all():
            raise DataError("the network's output is not finite here; look at the scan's intensities")
    return logits


def _patches(image: Tensor, tiles: Sequence[Tile], mirrors: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    for tile in tiles:
        patch = image[tile][None].contiguous()
        for flip in mirrors:
            yield torch.flip(patch, flip) if flip else patch.clone()
