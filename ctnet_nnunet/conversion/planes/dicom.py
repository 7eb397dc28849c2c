"""A study of imaging planes from DICOM files: single-frame or enhanced, with cine frames by their trigger time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread

from ctnet_nnunet.conversion.cases import relative
from ctnet_nnunet.conversion.dicom_headers import Header, read_header
from ctnet_nnunet.conversion.dicom_series import series_geometry
from ctnet_nnunet.conversion.planes.stacks import ReadStack, ReadStudy, RolePattern, planes_of_image, role_of
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.files import text_hash
from ctnet_nnunet.planes.geometry import Plane, disagreement, plane_from_dicom
from ctnet_nnunet.planes.sidecar import MOST_DISAGREEMENT_MM

_SAME_POSITION_MM = 1e-2
_ORDERED_BY = ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")


@dataclass(frozen=True)
class Frame:
    """One slice at one time: its header (of an enhanced file: what holds for this frame) and its place in the file."""

    header: Header
    index: int = 0


def read_dicom_study(
    name: str, folder: Path, patterns: Sequence[RolePattern], guests: Sequence[str], max_voxels: int
) -> ReadStudy:
    """Read all series of a folder that have a role; what cannot be used is refused, the others are kept.

    Series of one role are taken together, since scanners may store each slice of a cine stack as a series. A guest
    whose slices make no image (tilted, irregular) keeps its planes.
    """
    study = ReadStudy(name)
    by_role: dict[str, dict[str, list[Frame]]] = defaultdict(dict)
    for series, (label, headers) in _series(folder, study).items():
        try:
            role = role_of(patterns, label, *{relative(header.path.parent, folder) for header in headers})
            if not role:
                study.refused[label] = "no --role fits it"
                continue
            by_role[role][series] = [frame for header in headers for frame in frames_of(header)]
        except DataError as error:
            study.refused[label] = _short(error, folder)
    for role, found in by_role.items():
        frames = [frame for group in found.values() for frame in group]
        label = ", ".join(sorted({frame.header.description or role for frame in frames}))
        try:
            study.stacks.append(_stack(role, label, frames, max_voxels))
        except DataError as error:
            study.refused[label] = _short(error, folder)
            if role in guests and (kept := _planes_alone(role, label, frames)):
                study.stacks.append(kept)
                study.notes.append(f"{label}: its planes are kept as a guest's")
    if len(study.stacks) > 1 and not any(stack.frame_of_reference for stack in study.stacks):
        study.notes.append("its series name no frame of reference and are taken to lie in one")
    return study


def refuse_series(study: ReadStudy, folder: Path) -> None:
    """Refuse each DICOM series of a folder whose NIfTI files are the study."""
    for label, _ in _series(folder, study).values():
        study.refused[label] = "is DICOM in a folder that also holds NIfTI files, which alone are read; separate them"


def frames_of(header: Header) -> list[Frame]:
    """The frames of a file.

    Raises:
        DataError: A mosaic, whose pixels mix slices; an enhanced file without planes.
    """
    reason = header.needs_dcm2niix
    if not reason:
        return [Frame(header)]
    if "mosaic" in reason:
        raise DataError(
            f"is {reason}, which has no plane of its own for each slice; convert the series with dcm2niix and give the "
            "NIfTI files' folder as SOURCE"
        )
    return _enhanced(header)


def _enhanced(header: Header) -> list[Frame]:
    dataset = dcmread(header.path, stop_before_pixels=True)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not groups:
        raise DataError(f"{header.path}: its frames have no positions; export the series as single-frame files")
    frames = []
    for index, own in enumerate(groups):

        def group(sequence: str, keyword: str, own: Any = own) -> Any:
            found = own.get(sequence) or shared.get(sequence) or [{}]
            return found[0].get(keyword)

        values = {
            "ImagePositionPatient": group("PlanePositionSequence", "ImagePositionPatient"),
            "ImageOrientationPatient": group("PlaneOrientationSequence", "ImageOrientationPatient"),
            "PixelSpacing": group("PixelMeasuresSequence", "PixelSpacing"),
            "SliceThickness": group("PixelMeasuresSequence", "SliceThickness"),
            "SpacingBetweenSlices": group("PixelMeasuresSequence", "SpacingBetweenSlices"),
            "TriggerTime": group("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
            "TemporalPositionIdentifier": group("FrameContentSequence", "TemporalPositionIndex"),
            "InstanceNumber": index,
        }
        known = {key: value for key, value in values.items() if value is not None}
        frames.append(Frame(Header(header.path, {**header.values, **known}), index))
    return frames


def _series(folder: Path, study: ReadStudy) -> dict[str, tuple[str, list[Header]]]:
    """Series → what it is called in messages, and its files; damaged files are refused one by one."""
    groups: dict[str, list[Header]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file() and (header := read_header(path)) is not None:
                groups[header.text("SeriesInstanceUID") or str(path.parent)].append(header)
        except DataError as error:
            study.refused[relative(path, folder)] = _short(error, folder)
    labels = {key: headers[0].description or relative(headers[0].path, folder) for key, headers in groups.items()}
    counts = Counter(labels.values())
    return {
        key: (label if counts[label] == 1 else f"{label} ({relative(groups[key][0].path, folder)})", groups[key])
        for key, label in labels.items()
    }


def _stack(role: str, label: str, frames: Sequence[Frame], max_voxels: int) -> ReadStack:
    """One image for each time; the planes are those of the slices' own headers.

    Raises:
        DataError: The slices make no volume to within 0.05 mm, or times are missing or cannot be told apart.
    """
    columns, rows = frames[0].header.size
    if columns * rows * len(frames) > max_voxels:
        raise DataError(f"declares more than {max_voxels} voxels; crop the scan")
    if len({frame.header.text("FrameOfReferenceUID") for frame in frames}) > 1:
        raise DataError(f"{label}: its slices lie in several frames of reference; separate the series")
    positions = _by_position(frames, label)
    times = _in_time([_ordered(group, label) for group in positions], label)
    pixels = _Pixels()
    images = []
    for moment in times:
        geometry = series_geometry([frame.header for frame in moment], label)
        # Along the normal, as positions are.
        image = sitk.GetImageFromArray(np.stack([pixels.of(frame) for frame in moment]))
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
        images.append(image)
        _check_even(image, [_plane(frame, label) for frame in moment], label)
    uid = frames[0].header.text("FrameOfReferenceUID")
    planes = [_plane(frame, label) for frame in times[0]]
    return ReadStack.of_images(role, label, images, text_hash(uid) if uid else "", planes)


def _check_even(image: sitk.Image, planes: Sequence[Plane], label: str) -> None:
    """Refuse slices that a volume's even grid puts elsewhere than their own headers do."""
    off = disagreement(planes_of_image(image), planes, image.GetSize()[1::-1])
    if off > MOST_DISAGREEMENT_MM:
        raise DataError(
            f"{label}: one image would put its slices up to {off:.2g} mm from where their headers do, as they are "
            "shifted or unevenly apart; resample it to even slices and give it as NIfTI"
        )


def _by_position(frames: Sequence[Frame], label: str) -> list[list[Frame]]:
    """The frames at each slice position, along the slice normal."""
    planes = [_plane(frame, label) for frame in frames]
    along = np.array([planes[0].normal @ np.array(plane.position) for plane in planes])
    groups: list[list[Frame]] = []
    last = -np.inf
    for index in np.argsort(along, kind="stable"):
        if along[index] - last > _SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frames[index])
        last = along[index]
    return groups


def _ordered(group: Sequence[Frame], label: str) -> list[Frame]:
    """The frames at one position by time."""
    if len(group) == 1:
        return list(group)
    for keyword in _ORDERED_BY:
        times = [(frame.header.numbers(keyword, 1) or (np.nan,))[0] for frame in group]
        if len(set(times)) == len(group) and not np.isnan(times).any():
            return [group[index] for index in np.argsort(times)]
    raise DataError(
        f"{label}: {len(group)} images lie at one position and nothing tells their times apart; narrow --role to one "
        "acquisition"
    )


def _in_time(positions: Sequence[Sequence[Frame]], label: str) -> list[list[Frame]]:
    counts = {len(group) for group in positions}
    if len(counts) > 1:
        raise DataError(
            f"{label}: has {min(counts)} to {max(counts)} frames at its positions; complete the series, or narrow "
            "--role to one acquisition"
        )
    return [[group[time] for group in positions] for time in range(counts.pop())]


def _planes_alone(role: str, label: str, frames: Sequence[Frame]) -> ReadStack | None:
    try:
        first = [group[0] for group in _by_position(frames, label)]
        planes = [_plane(frame, label) for frame in first]
    except DataError:
        return None
    if len({frame.header.text("FrameOfReferenceUID") for frame in frames}) > 1:
        return None
    columns, rows = first[0].header.size
    uid = first[0].header.text("FrameOfReferenceUID")
    parallel = all(abs(plane.normal @ planes[0].normal) > 1 - 1e-4 for plane in planes)
    shape = (len(planes), rows, columns)
    return ReadStack(role, label, tuple(planes), shape, (), text_hash(uid) if uid else "") if parallel else None


def _plane(frame: Frame, label: str) -> Plane:
    header = frame.header
    position, orientation = header.numbers("ImagePositionPatient", 3), header.numbers("ImageOrientationPatient", 6)
    spacing = header.numbers("PixelSpacing", 2)
    if position is None or orientation is None or spacing is None:
        raise DataError(f"{label}: a slice has no usable position, orientation or spacing; export the series again")
    thickness = header.numbers("SliceThickness", 1) or (0.0,)
    try:
        return plane_from_dicom(position, orientation, spacing, thickness[0])
    except DataError as error:
        raise DataError(f"{label}: {error}") from None


class _Pixels:
    """Slices from files, each read once for all of its frames; values as scaled, in the type that holds them."""

    def __init__(self) -> None:
        self._path, self._array = Path(), np.empty(0)

    def of(self, frame: Frame) -> np.ndarray:
        if self._path != frame.header.path:
            try:
                self._array = sitk.GetArrayFromImage(sitk.ReadImage(str(frame.header.path)))
            except RuntimeError:
                raise DataError(f"{frame.header.path}: its pixels cannot be read; copy it again") from None
            self._path = frame.header.path
        plane: np.ndarray = self._array[frame.index] if self._array.ndim == 3 else self._array
        return plane


def _short(error: DataError, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "")
