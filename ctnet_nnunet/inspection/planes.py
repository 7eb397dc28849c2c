"""A study's host slices with the lines that its other planes truly cut, and those that a checkpoint predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from ctnet_nnunet.errors import DataError, PlanError
from ctnet_nnunet.inspection.model import Model, load_model
from ctnet_nnunet.planes.geometry import Line, intersection, slice_locations
from ctnet_nnunet.planes.preprocessed import first_slice, preprocessed_planes
from ctnet_nnunet.planes.sidecar import FILE_NAME, Sidecar, read_sidecar
from ctnet_nnunet.planning.options import read_options
from ctnet_nnunet.pretext.imaging_planes import line_errors
from ctnet_nnunet.unlabeled.target import Target, configuration_block, locate


@dataclass(frozen=True)
class ShownSlice:
    """One host slice.

    Attributes:
        case, index: The case, and the slice after preprocessing.
        image: (H, W), the first channel.
        spacing: Of rows and columns, mm.
        lines: True line of each guest, None where there is none.
        location: True location, or None.
        heat: Predicted heatmaps (G, H, W), or None.
        predicted_location: Or None.
        errors: (angle in degrees, offset in mm) of each predicted line; nan where nothing was found.
    """

    case: str
    index: int
    image: np.ndarray
    spacing: tuple[float, float]
    lines: tuple[Line | None, ...]
    location: float | None
    heat: np.ndarray | None
    predicted_location: float | None
    errors: tuple[tuple[float, float], ...]

    @property
    def on_line_mm(self) -> float:
        """Within how many mm a pixel counts as on a line: a pixel's diagonal."""
        return math.hypot(*self.spacing)

    def crossed_by(self, guest: int) -> bool:
        """Whether the true line of a guest passes the slice."""
        line = self.lines[guest]
        return line is not None and line.passes(self.image.shape, self.on_line_mm)


@dataclass(frozen=True)
class ShownStudy:
    """A study's host slices and its guests' roles, in the order of lines and heatmaps."""

    name: str
    guests: tuple[str, ...]
    slices: tuple[ShownSlice, ...]


@dataclass(frozen=True)
class Inspected:
    """A preprocessed dataset with planes.json, the settings to look at it with, and a model or None."""

    target: Target
    block: Mapping[str, Any]
    sidecar: Sidecar
    options: Mapping[str, Any]
    model: Model | None

    @property
    def guests(self) -> tuple[str, ...]:
        return tuple(self.options["guests"])

    def slices(self, name: str) -> list[ShownSlice]:
        """The host slices of a study, none where it is not preprocessed."""
        stacks = self.sidecar.studies[name].stacks
        # Cine frames share their geometry: the first one shows it.
        cases = [(role, case) for role in self.options["hosts"] if role in stacks for case in stacks[role].cases[:1]]
        return [found for role, case in cases for found in self._slices_of(name, role, case)]

    def _slices_of(self, name: str, role: str, case: str) -> list[ShownSlice]:
        labelled = self.target.folder.parent / str(self.block["data_identifier"])
        folder = next((f for f in (self.target.folder, labelled) if (f / f"{case}.b2nd").is_file()), None)
        if folder is None:
            return []
        study = self.sidecar.studies[name]
        data, _, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        planes = preprocessed_planes(properties, data.shape[1:], self.target.plans["transpose_forward"])
        slice_of = self.options["guest_slice"]
        cutting = [None if guest == role else study.guest(guest, slice_of) for guest in self.guests]
        locations = slice_locations(study.stacks[role].stack, role, self.options["location_axis"])
        found = []
        for index, plane in enumerate(planes):
            image = np.asarray(data[:, index], np.float32)
            lines = tuple(None if guest is None else intersection(plane, guest) for guest in cutting)
            location = None if locations is None else float(locations[first_slice(properties) + index])
            heat, predicted = (None, None) if self.model is None else self.model.predict(image)
            errors = _errors(heat, lines, plane.spacing)
            found.append(ShownSlice(case, index, image[0], plane.spacing, lines, location, heat, predicted, errors))
        return found


def open_dataset(dataset: str, configuration: str, plans: str, checkpoint: Path | None) -> Inspected:
    """Find a dataset's preprocessed studies and, where a checkpoint is given, load its model.

    Raises:
        DataError: No planes.json.
        PlanError, CheckpointError: Plans without 2d slices along the stacks; a checkpoint of another plan or trainer.
    """
    target = locate(dataset, configuration, plans)
    block = configuration_block(target.plans, configuration, plans)
    if len(block["patch_size"]) != 2:
        raise PlanError(f"configuration {configuration}: imaging planes are single slices; name a 2d one with -c")
    if (order := target.plans["transpose_forward"])[0] != 0:
        raise PlanError(
            f"plans {plans}: transpose_forward {order} takes 2d slices along another axis than the stacks have theirs; "
            "name other plans with -p"
        )
    sidecar = read_sidecar(target.folder / FILE_NAME)
    model = None if checkpoint is None else load_model(checkpoint, target, block)
    given = read_options(block.get("ctnet"), f"plans {plans}").model_dump()
    options = sidecar.settings({**given, **({} if model is None else model.options)})
    return Inspected(target, block, sidecar, options, model)


def show_study(inspected: Inspected, study: str | None) -> ShownStudy:
    """The slices of a study, the first one by default, with predictions where there is a model.

    Raises:
        DataError: No such study, or no preprocessed host in it.
    """
    studies = inspected.sidecar.studies
    name = next(iter(studies), "") if study is None else study
    if name not in studies:
        raise DataError(
            f"{inspected.target.folder / FILE_NAME}: has no study {name!r}; there are {', '.join(list(studies)[:8])}"
        )
    slices = inspected.slices(name)
    if not slices:
        hosts = ", ".join(inspected.options["hosts"])
        raise DataError(f"study {name}: none of its {hosts} cases is preprocessed; see planes.json")
    return ShownStudy(name, inspected.guests, tuple(slices))


def line_offsets(inspected: Inspected) -> dict[str, tuple[float, ...]]:
    """Study → the median distance in mm of each guest's predicted lines to the true ones, the worst study first.

    Only slices that the true line crosses count; nan where nothing was found in any. Studies that are not preprocessed
    are left out.
    """
    found = {}
    for name in inspected.sidecar.studies:
        if slices := inspected.slices(name):
            found[name] = tuple(_median_offset(slices, guest) for guest in range(len(inspected.guests)))
    return dict(sorted(found.items(), key=lambda item: max(filter(math.isfinite, item[1]), default=-1.0), reverse=True))


def _median_offset(slices: Sequence[ShownSlice], guest: int) -> float:
    offsets = [item.errors[guest][1] for item in slices if item.crossed_by(guest)]
    return float(np.median(seen)) if (seen := [offset for offset in offsets if math.isfinite(offset)]) else math.nan


def _errors(
    heat: np.ndarray | None, lines: Sequence[Line | None], spacing: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    if heat is None:
        return tuple((np.nan, np.nan) for _ in lines)
    true = [(0.0, 0.0, 0.0) if line is None else (line.per_row, line.per_column, line.offset) for line in lines]
    angle, offset = line_errors(torch.from_numpy(heat)[None], torch.tensor(true)[None], spacing)
    return tuple(
        (np.nan, np.nan) if line is None else (float(a), float(o))
        for line, a, o in zip(lines, angle[0], offset[0], strict=True)
    )
