"""One case from its source files into a raw dataset: read, checked, turned to RAS, written, pictured."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Case, Image
from ctnet_nnunet.conversion.geometry import (
    Relation,
    compare_grids,
    on_grid_of,
    resample_to,
    to_ras,
)
from ctnet_nnunet.conversion.labels import LabelMap, as_integers, numbers_in
from ctnet_nnunet.conversion.pictures import draw_case, draw_overlay
from ctnet_nnunet.conversion.read import read_image
from ctnet_nnunet.conversion.writer import case_files, write_image
from ctnet_nnunet.errors import CTNetError, DataError
from ctnet_nnunet.image_check import MAX_VOXELS, check_voxels
from ctnet_nnunet.orientation import orientation


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``reason`` is empty when it was written.

    ``size`` (voxels) and ``spacing`` (mm) are in RAS order; ``voxels`` counts each label; ``picture`` is a file name.
    """

    case: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    stored_as: str = ""
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    voxels: dict[int, int] | None = None
    picture: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class CaseConverter:
    """Callable that converts one :class:`Case` into ``dataset``; picklable, so that worker processes can run it.

    ``reorient`` accepts files whose axes are stored in another order than the first channel's; ``resample`` brings
    channels of another grid onto the first one's.
    """

    dataset: Path
    pictures: Path
    label_map: LabelMap | None
    reorient: bool = False
    resample: bool = False
    max_voxels: int = MAX_VOXELS

    def __call__(self, case: Case) -> Outcome:
        """Convert the case; one that fails leaves none of its files behind."""
        start, notes = time.process_time(), list[str]()
        try:
            outcome = self._convert(case, notes)
        except CTNetError as error:
            outcome = self._failed(case, str(error), notes)
        except MemoryError:
            outcome = self._failed(case, "not enough memory; use fewer processes (-np 1) or crop the scan", notes)
        except (RuntimeError, OSError) as error:  # ITK's errors are RuntimeErrors of many lines
            outcome = self._failed(case, f"{case.images[0]}: {str(error).strip().splitlines()[-1]}", notes)
        return dataclasses.replace(outcome, cpu_seconds=time.process_time() - start)

    def _failed(self, case: Case, reason: str, notes: list[str]) -> Outcome:
        for file in case_files(self.dataset, case):
            file.unlink(missing_ok=True)
        picture = f"{case.name}.png"
        return Outcome(case.name, reason, tuple(notes), picture=picture if (self.pictures / picture).is_file() else "")

    def _convert(self, case: Case, notes: list[str]) -> Outcome:
        files = case_files(self.dataset, case)
        first = self._read(case.images[0], notes)
        check_voxels(sitk.GetArrayViewFromImage(first), str(case.images[0]))
        turned = to_ras(first)
        label = self._label(case, first, turned, notes) if case.label else None
        write_image(turned, files[0])
        for image, file in zip(case.images[1:], files[1:], strict=False):
            write_image(self._channel(image, first, turned, case, notes), file)
        array = sitk.GetArrayViewFromImage(label) if label is not None else None
        if label is not None:
            write_image(label, files[-1])
        draw_case(turned, array, self.pictures / f"{case.name}.png")
        return Outcome(
            case.name,
            notes=tuple(notes),
            stored_as=orientation(first),
            size=turned.GetSize(),
            spacing=tuple(round(s, 6) for s in turned.GetSpacing()),
            voxels=None if array is None else numbers_in(array, case.name),
            picture=f"{case.name}.png",
        )

    def _read(self, image: Image, notes: list[str]) -> sitk.Image:
        read, said = read_image(image, self.max_voxels)
        notes += said
        return read

    def _channel(self, image: Image, first: sitk.Image, turned: sitk.Image, case: Case, notes: list[str]) -> sitk.Image:
        """A further channel on the grid of ``turned``, which is the first channel in RAS."""
        channel = self._read(image, notes)
        check_voxels(sitk.GetArrayViewFromImage(channel), str(image))
        relation, distance = compare_grids(first, channel)
        if relation is Relation.OTHER and self.resample:
            notes.append(f"{image.path.name}: resampled (linear) to the grid of {case.images[0].path.name}")
            return resample_to(turned, channel)
        if relation is Relation.OTHER:
            raise DataError(
                f"{image}: lies on another grid ({_grid(channel)}) than {case.images[0].path.name} ({_grid(first)}); "
                "register and resample it, or add --resample-to-first where only the grid differs"
            )
        self._accept(image, channel, first, relation, distance, notes)
        return on_grid_of(first, turned, channel, relation)

    def _accept(
        self, image: Image, read: sitk.Image, first: sitk.Image, relation: Relation, distance: float, notes: list[str]
    ) -> None:
        """Say what is repaired; refuse a turned grid unless turning is wanted."""
        name = image.path.name
        if relation is Relation.NOISE:
            notes.append(f"{name}: header repaired, it was {distance:.1g} mm off by rounding")
        if relation is not Relation.TURNED:
            return
        if not self.reorient:
            raise DataError(
                f"{image}: lies on the grid of the first channel, but its axes are stored as {orientation(read)} and "
                f"not as {orientation(first)}; look whether both fit (the page shows labels), then add --reorient"
            )
        notes.append(f"{name}: turned from {orientation(read)} as its header says, the image from {orientation(first)}")

    def _label(self, case: Case, first: sitk.Image, turned: sitk.Image, notes: list[str]) -> sitk.Image:
        """The label map with consecutive labels on the grid of ``turned``, which is the first channel in RAS."""
        assert case.label is not None
        assert self.label_map is not None
        name, read = str(case.label), self._read(case.label, notes)
        array, rounded = as_integers(sitk.GetArrayViewFromImage(read), name)
        if rounded:
            notes.append(f"{case.label.path.name}: labels were a little off integers and have been rounded")
        relation, distance = compare_grids(first, read)
        seen = ""
        if relation is Relation.OTHER or (relation is Relation.TURNED and not self.reorient):
            seen = self._draw_both(case, read, first, array)
        if relation is Relation.OTHER:
            off = f"up to {distance:.3g} mm off" if np.isfinite(distance) else f"{_grid(read)} against {_grid(first)}"
            raise DataError(
                f"{name}: lies on another grid than its image, {off}{seen}; resample it with nearest neighbour, or "
                "correct its header"
            )
        labels = sitk.GetImageFromArray(self.label_map.apply(array, name))
        labels.CopyInformation(read)
        self._accept(case.label, labels, first, relation, distance, notes)
        placed = on_grid_of(first, turned, labels, relation)
        if not sitk.GetArrayViewFromImage(placed).any():
            notes.append(f"{case.label.path.name}: has no label besides background")
        return placed

    def _draw_both(self, case: Case, read: sitk.Image, first: sitk.Image, array: Any) -> str:
        """Draw a label map that is refused over its image, each where its header places it; returns what is seen."""
        if read.GetDimension() != 3 or first.GetDimension() != 3:
            return ""
        shown = sitk.GetImageFromArray((array != 0).astype(np.uint8))
        shown.CopyInformation(read)
        overlap = draw_overlay(first, shown, self.pictures / f"{case.name}.png")
        return f" (picture: {case.name}.png)" if overlap else ", and none of it lies inside the image"


def _grid(image: sitk.Image) -> str:
    size, spacing = image.GetSize(), image.GetSpacing()
    return f"{'×'.join(map(str, size))} voxels of {'×'.join(f'{s:.3g}' for s in spacing)} mm"
