"""What a report says of each structure: volume, how far the folds agree, and what should make a reader look twice."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctnet_nnunet.evaluation.metrics import Structure, dice
from ctnet_nnunet.evaluation.statistics import summarise
from ctnet_nnunet.inference.ensemble import Prediction

LOW_AGREEMENT = 0.7
"""Mean Dice between folds below which a structure is flagged; two raters of small nuclei agree better than that."""


@dataclass(frozen=True)
class Measurement:
    """One structure in one scan; ``nan`` where a value is not defined.

    Attributes:
        case, structure: Which.
        volume_ml: In the scan's own grid.
        fold_sd_ml: Standard deviation of the folds' volumes, in the plan's grid.
        fold_dice: Mean Dice between pairs of folds: 1 where all agree.
        entropy: Mean uncertainty of the ensemble within the structure, 0 to 1.
        flags: ``empty``, ``touches the border of the scan``, ``touches the border of the box``, ``folds disagree``.
    """

    case: str
    structure: str
    volume_ml: float
    fold_sd_ml: float
    fold_dice: float
    entropy: float
    flags: tuple[str, ...]


COLUMNS = tuple(field.name for field in fields(Measurement))


def measure(
    case: str, prediction: Prediction, structures: Sequence[Structure], spacing: Sequence[float]
) -> list[Measurement]:
    """Measure every structure; ``spacing`` is in mm along the axes of ``prediction.labels``."""
    voxel_ml = float(np.prod(spacing)) / 1000.0
    found = []
    for structure in structures:
        mask = structure.mask(prediction.labels)
        folds = [structure.mask(labels) for labels in prediction.fold_labels]
        agreement = summarise(dice(a, b) for a, b in itertools.combinations(folds, 2)).mean
        entropies = [prediction.entropy[label] for label in structure.labels if label in prediction.entropy]
        found.append(
            Measurement(
                case=case,
                structure=structure.name,
                volume_ml=int(mask.sum()) * voxel_ml,
                fold_sd_ml=summarise(int(fold.sum()) * prediction.voxel_ml for fold in folds).sd,
                fold_dice=agreement,
                entropy=summarise(entropies).mean,
                flags=_flags(mask, agreement, not prediction.cut_off.isdisjoint(structure.labels)),
            )
        )
    return found


def as_csv(measurements: Sequence[Measurement]) -> str:
    """A row for each case and structure; a value that is not defined is an empty cell, flags are separated by ``;``."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in measurements:
        writer.writerow([_cell(value) for value in asdict(item).values()])
    return stream.getvalue()


def as_plain(measurement: Measurement) -> dict[str, Any]:
    """For JSON: undefined values are None."""
    values = asdict(measurement)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _flags(mask: NDArray[np.bool_], agreement: float, cut_off: bool) -> tuple[str, ...]:
    flags = []
    if not mask.any():
        flags.append("empty")
    thick = [axis for axis, size in enumerate(mask.shape) if size > 1]
    if any(mask.take(end, axis).any() for axis in thick for end in (0, -1)):
        flags.append("touches the border of the scan")
    if cut_off:
        flags.append("touches the border of the box")
    if agreement < LOW_AGREEMENT:
        flags.append("folds disagree")
    return tuple(flags)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "; ".join(value) if isinstance(value, tuple) else str(value)
