"""One scan or label map from disk, judged by its header first: NIfTI (3D, or a volume of a 4D file), MGH, NRRD, …"""

from __future__ import annotations

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ctnet_nnunet import nifti_check
from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.image_check import MAX_VOXELS, check_integrity, is_orthonormal, read_image_header

MGH_ENDINGS = (".mgz", ".mgh")
IMAGE_ENDINGS = (".nii.gz", ".nii", *MGH_ENDINGS, ".nrrd", ".mha", ".mhd")
_MGH_EXTRA_BYTES = 1 << 24
"""Room for an MGH file's header and for the tags after its voxels."""
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def is_image(path: Path) -> bool:
    """True for the file endings that converters take."""
    return path.name.lower().endswith(IMAGE_ENDINGS) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The file's name without its image ending: ``a.nii.gz`` → ``a``."""
    ending = next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def read_image(image: Image, max_voxels: int = MAX_VOXELS) -> tuple[sitk.Image, list[str]]:
    """Read an image with its geometry (mm, LPS, as SimpleITK has it); returns it and what is to be said about it.

    Raises:
        DataError: missing, damaged, too large, not one number a voxel, or sides that the header does not settle.
    """
    path = image.path
    if image.slices:
        from ctnet_nnunet.conversion.dicom_pixels import read_series

        return read_series(image, max_voxels)
    if path.name.lower().endswith(MGH_ENDINGS):
        return _read_mgh(path, max_voxels), []
    notes = _nifti_notes(path) if nifti_check.is_nifti(path) and path.is_file() and path.stat().st_size else []
    if image.volume is not None:
        return _read_volume_of_4d(path, image.volume, max_voxels), notes
    header = read_image_header(path, max_voxels)
    if header.components != 1:
        raise DataError(f"{path}: has {header.components} values a voxel; write one file per channel")
    check_integrity(path)
    return _read(sitk.ImageFileReader(), path), notes


def _read(reader: sitk.ImageFileReader, path: Path) -> sitk.Image:
    reader.SetFileName(str(path))
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise DataError(f"{path}: cannot be read ({str(error).strip().splitlines()[-1]}); copy it again") from error


def _read_volume_of_4d(path: Path, volume: int, max_voxels: int) -> sitk.Image:
    promise = nifti_check.read_promise(path)
    if len(promise.size) == 3 and volume == 0:
        return read_image(Image(path), max_voxels)[0]
    if len(promise.size) != 4 or volume >= promise.size[3]:
        shape = " x ".join(map(str, promise.size))
        raise DataError(f"{path}: is {shape} voxels and has no volume {volume}; check the number of channels")
    if math.prod(promise.size) > max_voxels:
        raise DataError(f"{path}: declares {math.prod(promise.size)} voxels, above the limit of {max_voxels}; crop it")
    image = _read_4d(path, path.stat().st_mtime_ns)[:, :, :, volume]
    if not is_orthonormal(image.GetDirection()):
        raise DataError(f"{path}: the header's axes are not orthonormal; resample the scan to a plain grid")
    return image


@lru_cache(maxsize=1)
def _read_4d(path: Path, mtime_ns: int) -> sitk.Image:
    """A whole 4D file, kept for the next channel of the same case: decompressing it takes most of the time."""
    nifti_check.check_stream(path, nifti_check.read_promise(path))
    return _read(sitk.ImageFileReader(), path)


def volumes_in(path: Path) -> int:
    """How many 3D volumes a NIfTI file declares.

    Raises:
        DataError: not a NIfTI file of three or four dimensions.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    size = nifti_check.read_promise(path).size
    if len(size) not in (3, 4):
        raise DataError(f"{path}: has {len(size)} dimensions, wanted 3 or 4")
    return size[3] if len(size) == 4 else 1


def _nifti_notes(path: Path) -> list[str]:
    """Whether the header's two descriptions of the axes (qform, sform) agree on the sides.

    Raises:
        DataError: they name different sides; a reader's choice between them must not decide what is left.
    """
    nifti_check.read_promise(path)
    header = nibabel.load(path).header
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        return [f"{path.name}: the header does not say which side is left; the voxel order was taken as it is"]
    if sform is None or qform is None or np.allclose(sform, qform, atol=1e-3):
        return []
    codes = ["".join(axis or "?" for axis in nibabel.aff2axcodes(affine)) for affine in (sform, qform)]
    if codes[0] != codes[1]:
        raise DataError(
            f"{path}: sform ({codes[0]}) and qform ({codes[1]}) name different sides; find out which is right and "
            "write both alike"
        )
    return [f"{path.name}: sform and qform place the scan differently; the sides agree"]


def _read_mgh(path: Path, max_voxels: int) -> sitk.Image:
    """FreeSurfer's own format, which ITK does not read."""
    if not path.is_file():
        raise DataError(f"{path}: no such file (or a link to nothing)")
    try:
        loaded = nibabel.load(path)
        shape = tuple(n for axis, n in enumerate(loaded.shape) if axis < 3 or n != 1)
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > max_voxels:
            raise DataError(
                f"{path}: declares {loaded.shape} voxels; wanted three axes and at most {max_voxels} voxels"
            )
        if path.name.lower().endswith(".mgz"):
            _check_gzip(path, int(math.prod(shape)) * loaded.get_data_dtype().itemsize)
        array = np.asarray(loaded.dataobj).reshape(shape)
    except (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: is damaged, cut off or no MGH file ({_first_line(error)}); copy it again") from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: holds voxels that are NaN or infinite; repair or remove the scan")
    return from_affine(array, loaded.affine, path)


def _check_gzip(path: Path, voxel_bytes: int) -> None:
    """Read a compressed file to its checksum, which nibabel does not: it stops after the voxels."""
    left = voxel_bytes + _MGH_EXTRA_BYTES
    with gzip.open(path) as stream:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise ValueError("it holds more than its header says")


def from_affine(array: np.ndarray, affine: np.ndarray, path: Path) -> sitk.Image:
    """An image from voxels (x, y, z) and nibabel's affine (voxel → RAS mm).

    Raises:
        DataError: axes that are not finite and orthogonal; ``path`` says where.
    """
    linear = _LPS_FROM_RAS @ affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    if not np.isfinite(affine).all() or (spacing <= 0).any():
        raise DataError(f"{path}: the header's axes are not finite; export the scan again")
    direction = tuple((linear / spacing).ravel().tolist())
    if not is_orthonormal(direction):
        raise DataError(f"{path}: the header's axes are not orthonormal; resample the scan to a plain grid")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    image = sitk.GetImageFromArray(np.ascontiguousarray(native.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS_FROM_RAS @ affine[:3, 3]).tolist())
    image.SetDirection(direction)
    return image


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
