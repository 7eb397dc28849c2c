"""Label maps as DICOM Segmentation objects beside the series that they were made from, with highdicom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes

import ctnet_nnunet
from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.geometry import Relation, compare_grids, with_axes_of
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.inference.dicom_codes import Code, coded

_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_SERIES_OFFSET = 1000
_GRID_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Algorithm:
    """Who made the labels: stands in every segment."""

    name: str
    parameters: dict[str, str]
    model_id: str
    """A digest of the model's files; DICOM's place for it is the device's serial number."""


def write_segmentation(
    labels: sitk.Image,
    image: Image,
    others: Sequence[Image],
    structures: Sequence[Structure],
    algorithm: Algorithm,
    target: Path,
) -> None:
    """Write ``labels`` as a binary DICOM-SEG that refers to the instances of ``image``, and of the other channels.

    Args:
        labels: On the grid of the series as it was read.
        image: The series of the first channel, with its slices in order.
        others: Those of the other channels.
        structures: One segment each, in this order, also where they are empty.
        algorithm: Named in every segment.
        target: A file that appears whole or not at all.

    Raises:
        DataError: The series cannot be referred to (a mosaic, no frame of reference), or the file cannot be written.
    """
    sources = [_source(file) for file in image.slices]
    frames = _frames(labels, sources, image.path)
    further = [_source(file) for other in others for file in other.slices]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=_segment_numbers(frames, structures),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(n, s, algorithm) for n, s in enumerate(structures, start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_OFFSET + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="ctnet_nnunet",
            manufacturer_model_name="ctnet predict",
            software_versions=ctnet_nnunet.__version__,
            device_serial_number=algorithm.model_id[:16],
            omit_empty_frames=bool(np.any(frames)),
            content_label="SEGMENTATION",
            content_description="Predicted structures",
            further_source_images=further or None,
        )
        segmentation.SeriesDescription = f"Segmentation, {algorithm.name}"[:64]
        _add_sides(segmentation, structures)
        _save(segmentation, target)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{image.path}: no DICOM-SEG can be made for the series ({error}); use the label map"
        ) from error


def _source(file: Path) -> Dataset:
    """A source instance without its pixels; attributes that may be empty are there."""
    dataset = dcmread(file, stop_before_pixels=True)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID"):
        if not dataset.get(keyword):
            raise DataError(f"{file}: has no {keyword}, which a DICOM-SEG must refer to; use the label map")
    return dataset


def _frames(labels: sitk.Image, sources: list[Dataset], folder: Path) -> NDArray[Any]:
    """The labels (frame, row, column) in the order of the source instances or of the frames of the only one."""
    if len(sources) > 1 or int(sources[0].get("NumberOfFrames") or 1) == 1:
        if "ImagePositionPatient" not in sources[0] or "MOSAIC" in str(sources[0].get("ImageType", "")):
            raise DataError(f"{folder}: a DICOM-SEG cannot refer to the tiles of a mosaic; use the label map")
        thickness = labels.GetSpacing()[2]
        for source in sources:
            if not source.get("SliceThickness"):
                source.SliceThickness = thickness
        return np.asarray(sitk.GetArrayFromImage(labels))
    grid, order = _frame_grid(sources[0], folder)
    placed = with_axes_of(grid, labels)
    distance = compare_grids(grid, placed)[1] if placed is not None else np.inf
    if placed is None or (compare_grids(grid, placed)[0] is Relation.OTHER and distance > _GRID_TOLERANCE_MM):
        raise DataError(f"{folder}: its frames are not the slices of one volume; use the label map")
    array = np.asarray(sitk.GetArrayFromImage(placed))
    frames = np.empty_like(array)
    frames[order] = array
    return frames


def _frame_grid(source: Dataset, folder: Path) -> tuple[sitk.Image, NDArray[np.intp]]:
    """The grid of a multi-frame file's frames, and which frame is the first, second, … along the normal."""
    try:
        shared, frames = source.SharedFunctionalGroupsSequence[0], source.PerFrameFunctionalGroupsSequence
        plane = _group(shared, frames[0], "PlaneOrientationSequence")
        measures = _group(shared, frames[0], "PixelMeasuresSequence")
        cosines = np.array([float(v) for v in plane.ImageOrientationPatient]).reshape(2, 3)
        positions = np.array([[float(v) for v in f.PlanePositionSequence[0].ImagePositionPatient] for f in frames])
        rows, columns = (float(v) for v in measures.PixelSpacing)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise DataError(f"{folder}: its frames have no usable geometry; use the label map") from None
    normal = np.cross(*cosines)
    along = positions @ normal
    order = np.argsort(along)
    grid = sitk.Image([int(source.Columns), int(source.Rows), len(frames)], sitk.sitkUInt8)
    grid.SetOrigin(positions[order[0]].tolist())
    grid.SetSpacing([columns, rows, float(np.ptp(along)) / max(1, len(frames) - 1) or 1.0])
    grid.SetDirection(np.stack([*cosines, normal], axis=1).ravel().tolist())
    return grid, order


def _group(shared: Dataset, frame: Dataset, name: str) -> Dataset:
    """A functional group of the file or, where each frame has its own, of the first frame."""
    found: Dataset = (getattr(shared, name, None) or getattr(frame, name))[0]
    return found


def _segment_numbers(labels: NDArray[Any], structures: Sequence[Structure]) -> NDArray[Any]:
    """Segment numbers (frame, row, column); where structures overlap, masks (frame, row, column, segment)."""
    used = [label for structure in structures for label in structure.labels]
    if len(used) > len(set(used)):
        return np.stack([structure.mask(labels) for structure in structures], axis=-1).astype(np.uint8)
    table = np.zeros(max(int(labels.max()), *used) + 1, np.uint8 if len(structures) < 256 else np.uint16)
    for number, structure in enumerate(structures, start=1):
        table[list(structure.labels)] = number
    return table[labels.astype(np.int64)]


def _describe(number: int, structure: Structure, algorithm: Algorithm) -> highdicom.seg.SegmentDescription:
    names = coded(structure.name)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:64],
        segmented_property_category=_concept(names.category),
        segmented_property_type=_concept(names.type),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm.name[:64],
            family=codes.cid7162.ArtificialIntelligence,
            version=ctnet_nnunet.__version__,
            source="ctnet_nnunet",
            parameters=algorithm.parameters,
        ),
    )


def _concept(code: Code) -> highdicom.sr.CodedConcept:
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _add_sides(segmentation: Dataset, structures: Sequence[Structure]) -> None:
    """Left and right as modifiers of the type; highdicom's descriptions have no argument for them."""
    for item, structure in zip(segmentation.SegmentSequence, structures, strict=True):
        side = coded(structure.name).side
        if side is not None:
            property_type = item.SegmentedPropertyTypeCodeSequence[0]
            property_type.SegmentedPropertyTypeModifierCodeSequence = DicomSequence([_concept(side)])


def _save(segmentation: Any, target: Path) -> None:
    temporary = target.with_name(f".part_{os.getpid()}_{target.name}")
    try:
        segmentation.save_as(temporary)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        said = error.strerror or type(error).__name__
        raise DataError(f"{target}: could not be written ({said}); free disk space or fix the rights") from None
