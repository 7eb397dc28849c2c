"""From a case to the files that the plan's reader takes, turned as the training scans lie, and the way back.

nnU-Net sees voxels, not the patient: a scan whose axes are stored in another order or direction than the training's is
mirrored or lying on its side to the network. Turning permutes and flips axes; no voxel value is computed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from pydicom import dcmread

from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.geometry import Relation, compare_grids, with_axes_of
from ctnet_nnunet.conversion.read import IMAGE_ENDINGS, read_image
from ctnet_nnunet.conversion.writer import write_image
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.files import sha256
from ctnet_nnunet.image_check import MAX_VOXELS, check_image_file, check_voxels, read_image_header, refuse_other_grids
from ctnet_nnunet.inference.inputs import Case
from ctnet_nnunet.orientation import letters_of, orientation

CONVERTED = "RAS"
"""How `ctnet convert` stores every scan, and so what DICOM is turned to where the model says nothing."""
TURNS_ITSELF = {"NibabelIOWithReorient"}
"""Readers that turn a scan to RAS by themselves."""


@dataclass(frozen=True)
class Prepared:
    """A case as the plan's reader takes it.

    Attributes:
        files: One a channel.
        spacing, size: Of the first channel as it is read: mm, voxels (x, y, z).
        grid: The scan's own grid where ``files`` are others than the case's; None where labels need no way back.
        notes: What is to be said about the scan.
    """

    files: tuple[Path, ...]
    spacing: tuple[float, ...]
    size: tuple[int, ...]
    letters: str
    grid: sitk.Image | None
    notes: tuple[str, ...]


def prepare(case: Case, ending: str, reader: str, trained: str | None, folder: Path) -> Prepared:
    """Check a case's images; convert and turn them into ``folder`` where the plan's reader needs it.

    Args:
        case: From :func:`ctnet_nnunet.inference.inputs.find_cases`.
        ending: Of the model's files.
        reader: The plan's, by name.
        trained: How the training scans lie (``RAS``), where the model says so.
        folder: For converted files.

    Raises:
        DataError: An image that cannot be read or used, channels on different grids.
        SetupError: It needs dcm2niix, which is not installed.
    """
    plain = [i for i in case.images if not i.slices and i.volume is None and i.path.name.endswith(ending)]
    if len(plain) == len(case.images):
        headers = [check_image_file(image.path, voxels=True) for image in case.images]
        letters = letters_of(headers[0].direction)
        turning = trained is not None and reader not in TURNS_ITSELF and letters not in ("2D", trained)
        if not turning:
            names = [image.path.name for image in case.images]
            refuse_other_grids(case.name, list(zip(names, headers, strict=True)))
            files = tuple(image.path for image in case.images)
            return Prepared(files, headers[0].spacing, headers[0].size, letters, None, case.notes)
    if ending not in IMAGE_ENDINGS:
        raise DataError(f"{case.images[0]}: the model reads *{ending} only; give such files")
    return _convert(case, ending, trained or (CONVERTED if case.dicom else None), reader, folder)


def back_to_the_scan(labels: Path, prepared: Prepared) -> sitk.Image:
    """The label map that the plan's writer wrote, on the voxels of the scan as it came."""
    assert prepared.grid is not None
    placed = with_axes_of(prepared.grid, sitk.ReadImage(str(labels)))
    if placed is None or placed.GetSize() != prepared.grid.GetSize():
        raise DataError(
            f"{labels.name}: its axes do not lead back to the scan's; convert the scan with `ctnet convert`"
        )
    placed.CopyInformation(prepared.grid)
    return placed


def identity(image: Image) -> dict[str, Any]:
    """What identifies an input in a record: a file's hash; for a series its ids and hashes over ids and pixels."""
    if not image.slices:
        volume = {} if image.volume is None else {"volume": image.volume}
        return {"file": image.path.name, **volume, "sha256": sha256(image.path)}
    instances, pixels = hashlib.sha256(), hashlib.sha256()
    series = ""
    for file in image.slices:
        dataset = dcmread(file)
        series = str(dataset.get("SeriesInstanceUID", ""))
        instances.update(f"{dataset.get('SOPInstanceUID', '')}\n".encode())
        pixels.update(dataset.get("PixelData", b""))
    return {
        "series_instance_uid": series,
        "files": len(image.slices),
        "sop_instance_uids_sha256": instances.hexdigest(),
        "pixel_data_sha256": pixels.hexdigest(),
    }


def _convert(case: Case, ending: str, letters: str | None, reader: str, folder: Path) -> Prepared:
    folder.mkdir(parents=True, exist_ok=True)
    notes = list(case.notes)
    files: list[Path] = []
    first: sitk.Image | None = None
    grid: sitk.Image | None = None
    own = ""
    for number, image in enumerate(case.images):
        read, said = read_image(image, MAX_VOXELS)
        notes += said
        check_voxels(sitk.GetArrayViewFromImage(read), str(image))
        if first is None or grid is None:
            first, grid, own = read, _empty(read), orientation(read)
        else:
            read = _on_grid(grid, read, image)
        turned = sitk.DICOMOrient(read, letters) if letters and own not in ("2D", letters) else read
        files.append(folder / f"{case.name}_{number:04d}{ending}")
        write_image(turned, files[-1])
    if letters and own not in ("2D", letters):
        notes.append(f"turned from {own} to {letters}, as the model's scans lie; the labels are turned back")
    header = read_image_header(files[0])
    return Prepared(tuple(files), header.spacing, header.size, letters_of(header.direction), grid, tuple(notes))


def _on_grid(grid: sitk.Image, image: sitk.Image, where: Image) -> sitk.Image:
    relation, distance = compare_grids(grid, image)
    placed = with_axes_of(grid, image) if relation is Relation.TURNED else image
    if relation is Relation.OTHER or placed is None:
        off = f"{distance:.3g} mm off" if distance < float("inf") else "other voxels"
        raise DataError(f"{where}: lies on another grid than the first channel ({off}); resample the channels to one")
    placed = sitk.Image(placed)
    placed.CopyInformation(grid)
    return placed


def _empty(image: sitk.Image) -> sitk.Image:
    """A grid without voxels worth keeping."""
    grid = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    grid.CopyInformation(image)
    return grid
