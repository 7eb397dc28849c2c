"""What the training cases were like, kept beside the model: volumes of their structures, voxels, extent, orientation.

It is measured from the dataset's own label maps, by our trainers behind the first fold or by ``ctnet reference``, never
estimated; a model without it is predicted with all the same, and its report says that there is nothing to compare with.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import ndimage

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.cases import LabelScheme, read_label_scheme
from ctnet_nnunet.evaluation.volumes import read_label_map
from ctnet_nnunet.files import write_text
from ctnet_nnunet.orientation import FLAT, orientation

FILE = "reference_volumes.json"
FEWEST_CASES = 3
"""Below, a range says nothing and is not shown."""
FAR = 1.5
"""A scan this many times larger or smaller than any training case is flagged."""

_Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Signed = Annotated[float, Field(ge=-10_000, le=10_000)]


class Range(BaseModel):
    """Smallest and largest value of the training cases along each axis (right-left, front-back, up-down), in mm."""

    model_config = ConfigDict(extra="forbid")
    low: list[_Finite]
    high: list[_Finite]


class Span(BaseModel):
    """Where something lies: from ``low`` to ``high`` mm towards the patient's right, front and top."""

    model_config = ConfigDict(extra="forbid")
    low: Annotated[list[_Signed], Field(min_length=2, max_length=3)]
    high: Annotated[list[_Signed], Field(min_length=2, max_length=3)]


class Reference(BaseModel):
    """The training cases. ``volumes_ml`` are sorted, so that no value leads to a case.

    ``extent_mm`` is of the scans, ``structures_mm`` of the box that holds all structures of a scan; ``places_mm`` says
    where each structure lay in any case, counted from the middle of that box.
    """

    model_config = ConfigDict(extra="forbid")
    dataset: Annotated[str, Field(max_length=256)]
    cases: Annotated[int, Field(ge=1)]
    orientations: dict[Annotated[str, Field(pattern=r"^([RLAPIS]{3}|2D)$")], int]
    spacing_mm: Range
    extent_mm: Range
    structures_mm: Range | None = None
    places_mm: dict[str, Span] = Field(default_factory=dict)
    volumes_ml: dict[str, list[_Finite]]

    @property
    def orientation(self) -> str | None:
        """Three letters where all training scans lie alike, else None."""
        return next(iter(self.orientations)) if len(self.orientations) == 1 and FLAT not in self.orientations else None

    @property
    def places_structures(self) -> bool:
        """True where it says of volumes how large they and their structures are, and where these lie."""
        known = [self.extent_mm, self.structures_mm, *self.places_mm.values()]
        return bool(self.places_mm) and all(r is not None and len(r.low) == len(r.high) == 3 for r in known)

    def volumes(self, structure: str) -> list[float]:
        """Sorted, in ml, of the cases that have the structure; empty where they are too few to compare with."""
        found = [volume for volume in self.volumes_ml.get(structure, []) if volume > 0]
        return found if len(found) >= FEWEST_CASES else []


def reference_of(extras: dict[str, dict[str, Any]], where: Path) -> Reference | None:
    """The reference among a model's files; None where it has none.

    Raises:
        DataError: It is not as ``ctnet reference`` writes it.
    """
    if FILE not in extras:
        return None
    try:
        return Reference.model_validate(extras[FILE])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}/{FILE}: {place}: {first['msg']}; write it again with `ctnet reference`") from None


def measure_reference(labels: Path, dataset_json: Path, name: str) -> Reference:
    """Measure the label maps of a training set.

    Args:
        labels: ``labelsTr``, or ``gt_segmentations`` of the preprocessed dataset.
        dataset_json: Says what the labels are called.
        name: The dataset's.

    Raises:
        DataError: No label map, or one that cannot be read.
    """
    scheme = read_label_scheme(dataset_json)
    files = sorted(labels.glob(f"*{scheme.file_ending}")) if labels.is_dir() else []
    if not files:
        raise DataError(f"{labels}: holds no *{scheme.file_ending}; name the folder of the label maps with --labels")
    found = [_measure_case(file, scheme) for file in files]
    structures = [case.structures for case in found if case.structures is not None]
    places = {s.name: [case.places[s.name] for case in found if s.name in case.places] for s in scheme.structures}
    volumes = {s.name: sorted(round(case.volumes_ml[s.name], 6) for case in found) for s in scheme.structures}
    return Reference(
        dataset=name,
        cases=len(files),
        orientations=dict(sorted(Counter(case.letters for case in found).items())),
        spacing_mm=_range([case.spacing for case in found]),
        extent_mm=_range([case.extent for case in found]),
        structures_mm=_range(structures) if structures else None,
        places_mm={name: _span_of(spans) for name, spans in places.items() if spans},
        volumes_ml=volumes,
    )


@dataclass(frozen=True)
class _Case:
    """One label map, in mm along the patient's axes; ``structures`` is None where it holds none."""

    letters: str
    spacing: list[float]
    extent: list[float]
    structures: list[float] | None
    places: dict[str, Span]
    volumes_ml: dict[str, float]


def _measure_case(file: Path, scheme: LabelScheme) -> _Case:
    volume, array = read_label_map(file, scheme.known)
    letters, step = orientation(volume.image), volume.image.GetSpacing()
    spacing, extent = patient_axes(letters, step, volume.image.GetSize())
    counts = np.bincount(array.ravel(), minlength=max(scheme.known) + 1)
    voxel_ml = math.prod(step) / 1000.0
    volumes = {s.name: int(counts[list(s.labels)].sum()) * voxel_ml for s in scheme.structures}
    boxes = _boxes(array, scheme)
    if not boxes:
        return _Case(letters, spacing, extent, None, {}, volumes)
    low, high = _union(boxes.values())
    middle = (low + high) / 2
    axes, signs = axes_of(letters, len(step)), signs_of(letters, len(step))
    places = {}
    for name, ends in boxes.items():
        first, last = ((end - middle)[axes] * signs * np.array(step)[axes] for end in ends)
        places[name] = Span(low=np.minimum(first, last).tolist(), high=np.maximum(first, last).tolist())
    return _Case(letters, spacing, extent, patient_axes(letters, step, (high - low).tolist())[1], places, volumes)


_Ends = tuple[NDArray[np.float64], NDArray[np.float64]]
"""First voxel and the one behind the last along (x, y, z)."""


def _boxes(array: NDArray[np.int64], scheme: LabelScheme) -> dict[str, _Ends]:
    """Structure → the box that holds it, of those that are there."""
    by_label: dict[int, _Ends] = {}
    for label, place in enumerate(ndimage.find_objects(array), start=1):
        if place is not None:
            low, high = [part.start for part in place[::-1]], [part.stop for part in place[::-1]]
            by_label[label] = np.array(low, np.float64), np.array(high, np.float64)
    found = {s.name: [by_label[label] for label in s.labels if label in by_label] for s in scheme.structures}
    return {name: _union(boxes) for name, boxes in found.items() if boxes}


def _union(boxes: Iterable[_Ends]) -> _Ends:
    every = list(boxes)
    return np.min([low for low, _ in every], axis=0), np.max([high for _, high in every], axis=0)


def _span_of(spans: Sequence[Span]) -> Span:
    low, high = np.min([span.low for span in spans], axis=0), np.max([span.high for span in spans], axis=0)
    return Span(low=np.round(low, 6).tolist(), high=np.round(high, 6).tolist())


def write_reference(reference: Reference, model: Path) -> Path:
    """Write it into a model's folder."""
    file = model / FILE
    write_text(file, json.dumps(reference.model_dump(), indent=1) + "\n")
    return file


def patient_axes(letters: str, spacing: Sequence[float], size: Sequence[int]) -> tuple[list[float], list[float]]:
    """Voxel size and extent in mm along the patient's axes (right-left, front-back, up-down), or nearest to them.

    Args:
        letters: Where the scan's axes run to, such as ``RAS``.
        spacing, size: mm and voxels along them (x, y, z).
    """
    order = axes_of(letters, len(spacing))
    return [float(spacing[axis]) for axis in order], [float(spacing[axis]) * size[axis] for axis in order]


def axes_of(letters: str, count: int = 3) -> list[int]:
    """Which axis of a scan runs right-left, front-back, up-down; a flat image's axes as they are."""
    if letters == FLAT:
        return list(range(count))
    return [next(i for i, letter in enumerate(letters) if letter in pair) for pair in ("RL", "AP", "SI")]


def signs_of(letters: str, count: int = 3) -> list[int]:
    """1 where the axis of :func:`axes_of` runs to the right, the front or the top, else -1."""
    if letters == FLAT:
        return [1] * count
    return [1 if letters[axis] in "RAS" else -1 for axis in axes_of(letters)]


def differences(reference: Reference, spacing: Sequence[float], extent: Sequence[float]) -> list[str]:
    """What of a scan's grid lies far outside of the training cases', each as half a sentence."""
    found = []
    for what, values, known in (
        ("voxels", spacing, reference.spacing_mm),
        ("field of view", extent, reference.extent_mm),
    ):
        if len(values) != len(known.low):
            continue
        far = [
            f"{value:.3g} mm instead of {_span(low, high)}"
            for value, low, high in zip(values, known.low, known.high, strict=True)
            if value > FAR * high or value < low / FAR
        ]
        if far:
            found.append(f"{what} far from the training cases': {', '.join(far)}")
    return found


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _range(rows: list[list[float]]) -> Range:
    if len({len(row) for row in rows}) > 1:
        raise DataError("the label maps mix 2D and 3D; separate them")
    array = np.round(np.array(rows), 6)
    return Range(low=array.min(axis=0).tolist(), high=array.max(axis=0).tolist())
