"""The files of a case in a raw dataset, each written as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

from ctnet_nnunet import nifti_check
from ctnet_nnunet.conversion.cases import Case
from ctnet_nnunet.conversion.geometry import Relation, compare_grids
from ctnet_nnunet.errors import DataError

FILE_ENDING = ".nii.gz"
COMPRESSION = 1
"""Of zlib's levels: the higher ones take several times as long for a few percent."""


def case_files(dataset: Path, case: Case) -> list[Path]:
    """The files that a case becomes: its channels in order, then its label map."""
    part = case.destination
    files = [dataset / f"images{part}" / f"{case.name}_{c:04d}{FILE_ENDING}" for c in range(len(case.images))]
    return [*files, dataset / f"labels{part}" / f"{case.name}{FILE_ENDING}"] if case.label else files


def write_image(image: sitk.Image, file: Path) -> None:
    """Write voxels and geometry, nothing else; the same image gives the same bytes.

    What was written is read back, because ITK writes half a file to a full disk without a word.

    Raises:
        DataError: the file is not whole, or its geometry is not the image's.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = sitk.Image(image)
    for key in plain.GetMetaDataKeys():  # descriptions may name a patient
        plain.EraseMetaData(key)
    sitk.WriteImage(plain, str(file), True, COMPRESSION)
    try:
        nifti_check.check_stream(file, nifti_check.read_promise(file))
    except DataError as error:
        raise DataError(f"{file.name}: could not be written as a whole; free disk space and convert again") from error
    relation, distance = compare_grids(plain, _written_grid(file))
    if relation not in (Relation.SAME, Relation.NOISE):
        raise DataError(f"{file.name}: its geometry cannot be stored as NIfTI (off by {distance:.3g} mm); resample it")


def _written_grid(file: Path) -> sitk.Image:
    """The grid of a file as an empty image; its voxels are not read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    grid = sitk.Image(reader.GetSize(), sitk.sitkUInt8)
    grid.SetSpacing(reader.GetSpacing())
    grid.SetOrigin(reader.GetOrigin())
    grid.SetDirection(reader.GetDirection())
    return grid
