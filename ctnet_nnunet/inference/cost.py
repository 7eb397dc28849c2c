"""What a scan will cost before it is predicted: forward passes, seconds, and peak memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ctnet_nnunet.inference.engine import Engine, synchronise

TIMED_PASSES = 4
"""Passes of the timed run: enough that two are in flight most of the time."""


@dataclass(frozen=True)
class Cost:
    """What a scan costs: forward passes are the product of the first three, and those of the search.

    Attributes:
        tiles, mirrors, folds: Of the sliding window.
        search: Passes that find the box first.
        whole: With a box: passes that the whole scan would take.
        seconds: Of the forward passes, as far as known.
        peak_bytes: Estimated resident memory of this process at its highest, as far as known.
    """

    tiles: int
    mirrors: int
    folds: int
    search: int = 0
    whole: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def passes(self) -> int:
        return self.tiles * self.mirrors * self.folds + self.search


class Stopwatch:
    """Seconds per forward pass of an engine: from a short run first, later from real work."""

    def __init__(self, engine: Engine, patch_shape: Sequence[int]) -> None:
        """``patch_shape`` is (1, C, *patch)."""
        self._engine, self._shape = engine, tuple(patch_shape)
        self._seconds: float | None = None

    def seconds_per_pass(self) -> float:
        """Measured with empty patches when nothing has been predicted yet."""
        if self._seconds is None:
            patch = torch.zeros(self._shape, device=self._engine.device)
            list(self._engine.run([patch, patch]))  # memory is allocated, kernels are chosen
            begun = time.monotonic()
            list(self._engine.run([patch] * TIMED_PASSES))
            synchronise(self._engine.device)
            self._seconds = (time.monotonic() - begun) / TIMED_PASSES
        return self._seconds

    def learn(self, seconds: float, passes: int) -> None:
        """What the last scan took."""
        self._seconds = seconds / passes


def peak_bytes(heads: int, folds: int, grid: Sequence[int], scan: Sequence[int]) -> int:
    """Memory of predicting a preprocessed image of ``grid`` voxels that came from ``scan`` voxels, by shapes.

    What the process holds now (network, engine's buffers, image) counts as it is. To it come half-precision logits
    (twice when folds are summed), the folds' labels, and the larger of the window's sum of weights and the export of
    one class: its float64 copy and its resampled float64 and half arrays, the running maximum and the labels.
    """
    voxels, scan_voxels = math.prod(grid), math.prod(scan)
    logits = heads * voxels * 2
    window = logits * (2 if folds > 1 else 1) + voxels * 4
    same = tuple(grid) == tuple(scan)
    one_class = voxels * 8 + scan_voxels * (8 + 8 + 2 + 2 + 1) if not same else scan_voxels * (2 + 1 + 1)
    labels = folds * voxels
    return resident_bytes() + labels + max(window, logits + one_class)


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the kernel does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
