"""The voxels of a DICOM series: slice by slice with SimpleITK, mosaics and enhanced files with dcm2niix."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.dicom_headers import Header, read_header
from ctnet_nnunet.conversion.dicom_series import series_geometry
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.nifti_check import read_promise

_DCM2NIIX_SECONDS = 1800


def read_series(image: Image, max_voxels: int) -> tuple[sitk.Image, list[str]]:
    """Read the series of ``image.slices``; returns it with its geometry and what is to be said about it.

    Raises:
        DataError: it makes no volume, is damaged or too large.
        SetupError: it needs dcm2niix, which is not installed.
    """
    headers = [header for header in map(read_header, image.slices) if header is not None]
    if len(headers) != len(image.slices) or not headers:
        raise DataError(f"{image.path}: the series changed while it was converted; convert it again")
    if math.prod(headers[0].size) * len(headers) > max_voxels:
        raise DataError(f"{image.path}: declares more than {max_voxels} voxels; crop the scan")
    reason = headers[0].needs_dcm2niix
    if reason:
        return _by_dcm2niix(image, reason, max_voxels)
    return _by_slices(image, headers), []


def find_dcm2niix() -> str | None:
    """The program on PATH, or beside the Python that runs."""
    beside = Path(sys.executable).parent
    return shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(beside))


def require_dcm2niix(name: str, reason: str) -> str:
    """The program's path.

    Raises:
        SetupError: it is not installed; ``name`` and ``reason`` say what needs it.
    """
    program = find_dcm2niix()
    if program is None:
        raise SetupError(f"{name}: is {reason}, which needs dcm2niix; install it with: pip install dcm2niix")
    return program


def _by_slices(image: Image, headers: list[Header]) -> sitk.Image:
    geometry = series_geometry(headers, str(image.path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in geometry.files])
    if _scaled_differently(headers):
        reader.SetOutputPixelType(sitk.sitkFloat32)
    warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what ITK would warn of is judged in dicom_series
    try:
        volume = reader.Execute()
    except RuntimeError as error:
        raise DataError(_unreadable(geometry.files, error)) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warnings)
    if volume.GetSize() != geometry.size:
        raise DataError(f"{image.path}: its files hold other sizes than their headers say; export the series again")
    volume.SetSpacing(geometry.spacing)
    volume.SetOrigin(geometry.origin)
    volume.SetDirection(geometry.direction)
    return volume


def _place(file: Path, name: Path) -> None:
    try:
        name.symlink_to(file.resolve())
    except OSError:  # Windows allows links to few users
        shutil.copyfile(file, name)


def _unreadable(files: tuple[Path, ...], error: RuntimeError) -> str:
    """Which of a series' files it is: ITK does not say."""
    for file in files:
        try:
            sitk.ReadImage(str(file))
        except RuntimeError:
            return f"{file}: its pixels cannot be read, it is damaged or cut off; copy it again"
    return f"{files[0].parent}: cannot be read ({str(error).strip().splitlines()[-1]}); export the series again"


def _scaled_differently(headers: list[Header]) -> bool:
    """ITK takes the first slice's number type for all: too narrow where the scaling is fractional or changes."""
    scales = {(header.text("RescaleSlope") or "1", header.text("RescaleIntercept") or "0") for header in headers}
    return len(scales) > 1 or any(not float(part).is_integer() for scale in scales for part in scale)


def _by_dcm2niix(image: Image, reason: str, max_voxels: int) -> tuple[sitk.Image, list[str]]:
    from ctnet_nnunet.conversion.read import read_image

    program = require_dcm2niix(str(image.path), reason)
    with tempfile.TemporaryDirectory(prefix="ctnet-dicom-") as temporary:
        source, out = Path(temporary, "in"), Path(temporary, "out")
        source.mkdir()
        out.mkdir()
        for index, file in enumerate(image.slices):  # this series alone, whatever else lies beside it
            _place(file, source / f"{index:06d}.dcm")
        command = [program, "-z", "n", "-b", "n", "-m", "y", "-f", "series", "-o", str(out), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DCM2NIIX_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(f"{image.path}: dcm2niix did not end within {_DCM2NIIX_SECONDS} s") from None
        made = sorted(out.glob("*.nii"))
        if len(made) != 1:
            said = ([line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing"])[-1]
            raise DataError(f"{image.path}: dcm2niix made {len(made)} images of {reason}; its last words: {said}")
        size = read_promise(made[0]).size
        if len(size) == 4 and image.volume is None:
            raise DataError(f"{image.path}: holds {size[3]} volumes (a time series); choose one with --volume")
        volume = image.volume if len(size) == 4 else None
        try:
            read, notes = read_image(Image(made[0], volume), max_voxels)
        except DataError as error:
            raise DataError(str(error).replace(str(made[0]), str(image.path))) from None
        return read, [f"{image.path.name}: {reason}, read by dcm2niix", *notes]
