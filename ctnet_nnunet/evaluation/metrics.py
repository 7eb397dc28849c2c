"""Dice, Jaccard, HD95, ASSD, NSD and volume of one structure in one case.

Surface distances come from DeepMind's ``surface-distance`` package: the surface is cut into elements between voxel
corners, each weighted by its area, so that the numbers do not depend on how the grid happens to sample the surface.

Conventions where a structure is empty (all three are what the report prints):

=====================  =====  =======  ====  ======  ======
truth / prediction     Dice   Jaccard  NSD   HD95    ASSD
=====================  =====  =======  ====  ======  ======
both empty             nan    nan      nan   nan     nan
one of the two empty   0      0        0     nan     nan
=====================  =====  =======  ====  ======  ======

``nan`` means *not defined* and is left out of means, which carry the number of cases that they were taken over. A
missed structure therefore lowers the mean Dice, while its distance, which has no value in mm, does not hide in a mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError

BACKGROUND = "background"
IGNORE = "ignore"

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Structure:
    """A named structure: one label value, or several that together form a region."""

    name: str
    labels: tuple[int, ...]

    def mask(self, label_map: NDArray[Any]) -> BoolArray:
        """Voxels of ``label_map`` (any shape) that belong to the structure."""
        return np.isin(label_map, self.labels)


NSD_TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class Scores:
    """One structure in one case; distances in mm, volumes in ml, ``nan`` where a value is not defined.

    ``nsd`` is the normalised surface Dice (Nikolov et al., arXiv:1809.04430): the share of both surfaces that lies
    within a tolerance of the other one.
    """

    dice: float
    hd95_mm: float
    assd_mm: float
    nsd: float
    truth_ml: float
    prediction_ml: float

    @property
    def jaccard(self) -> float:
        """Intersection over union."""
        return self.dice / (2.0 - self.dice)

    @property
    def volume_error_percent(self) -> float:
        """Predicted minus true volume, in % of the true one; ``nan`` where that is 0."""
        return 100.0 * (self.prediction_ml / self.truth_ml - 1.0) if self.truth_ml > 0 else float("nan")

    @property
    def status(self) -> str:
        """``ok``, ``missed`` (in truth alone), ``spurious`` (in the prediction alone) or ``absent`` (in neither)."""
        if self.truth_ml > 0:
            return "ok" if self.prediction_ml > 0 else "missed"
        return "spurious" if self.prediction_ml > 0 else "absent"


def structures_from_labels(labels: dict[str, int | Sequence[int]]) -> tuple[Structure, ...]:
    """The structures of a ``dataset.json``'s ``labels``; background and the ignore label are left out.

    Raises:
        DataError: if nothing remains to be evaluated.
    """
    found = []
    for name, value in labels.items():
        values = (value,) if isinstance(value, int) else tuple(value)
        if name in (BACKGROUND, IGNORE) or values == (0,):
            continue
        found.append(Structure(name, tuple(int(v) for v in values)))
    if not found:
        raise DataError("dataset.json: 'labels' names no structure besides the background; add at least one")
    return tuple(found)


def dice(truth: BoolArray, prediction: BoolArray) -> float:
    """Volumetric Dice, 2|T∩P| / (|T|+|P|); ``nan`` where both are empty."""
    total = int(truth.sum()) + int(prediction.sum())
    if total == 0:
        return float("nan")
    return 2.0 * int((truth & prediction).sum()) / total


def surface_scores(
    truth: BoolArray, prediction: BoolArray, spacing: Sequence[float], tolerance_mm: float = NSD_TOLERANCE_MM
) -> tuple[float, float, float]:
    """HD95 and ASSD in mm, and NSD.

    HD95 is the larger of the two directed 95th percentiles. ASSD is the area-weighted mean over both surfaces together.

    Args:
        truth, prediction: masks of one shape, 2D or 3D.
        spacing: voxel size in mm along each array axis.
        tolerance_mm: of NSD.
    """
    if not truth.any() or not prediction.any():
        nsd = 0.0 if truth.any() or prediction.any() else float("nan")
        return float("nan"), float("nan"), nsd
    with warnings.catch_warnings():
        # The package reaches scipy's functions through names that scipy 1.x still has and warns about.
        warnings.simplefilter("ignore", DeprecationWarning)
        import surface_distance

        found = surface_distance.compute_surface_distances(truth, prediction, [float(s) for s in spacing])
        hd95 = float(surface_distance.compute_robust_hausdorff(found, 95.0))
        nsd = float(surface_distance.compute_surface_dice_at_tolerance(found, tolerance_mm))
    distances = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    return hd95, float((distances * areas).sum() / areas.sum()), nsd


def score(
    truth: BoolArray, prediction: BoolArray, spacing: Sequence[float], tolerance_mm: float = NSD_TOLERANCE_MM
) -> Scores:
    """All scores of one structure.

    Args:
        truth, prediction: masks of one shape, 2D or 3D.
        spacing: voxel size in mm along each array axis; in 2D the slice counts as 1 mm thick for the volume.
        tolerance_mm: of NSD.

    Raises:
        DataError: if the shapes differ, or the spacing does not fit them.
    """
    if truth.shape != prediction.shape:
        raise DataError(f"truth has shape {truth.shape}, prediction {prediction.shape}; both must lie on one grid")
    if len(spacing) != truth.ndim or min(spacing) <= 0:
        raise DataError(f"spacing {tuple(spacing)} does not fit an array with {truth.ndim} axes; give mm per axis")
    hd95, assd, nsd = surface_scores(truth, prediction, spacing, tolerance_mm)
    voxel_ml = float(np.prod(spacing)) / 1000.0
    return Scores(
        dice=dice(truth, prediction),
        hd95_mm=hd95,
        assd_mm=assd,
        nsd=nsd,
        truth_ml=int(truth.sum()) * voxel_ml,
        prediction_ml=int(prediction.sum()) * voxel_ml,
    )
