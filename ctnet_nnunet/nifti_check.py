"""What a NIfTI file promises, read from its first bytes, and whether the rest of the file keeps it.

ITK reads a truncated, corrupted or lying NIfTI file without a word: missing voxels become whatever lies in memory,
NaN becomes 0, and a zero spacing becomes 1 mm. Here the raw header is judged before anything repairs it, and the
voxels are read once as a stream, never further than the header says, so that checksum and NaN are seen.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ctnet_nnunet.errors import DataError

if TYPE_CHECKING:
    import numpy as np

NIFTI_ENDINGS = (".nii.gz", ".nii")
_HEADER_BYTES = 544  # the larger of NIfTI-1 (348) and NIfTI-2 (540), with the extension flag
_BLOCK = 1 << 20
_FLOAT32_MAX = 3.4e38
# The best that deflate can do is 1032 : 1; a file that promises more cannot hold it.
_DEFLATE_LIMIT = 1032


@dataclass(frozen=True)
class NiftiPromise:
    """The declared voxels of a NIfTI file: ``size`` in file order (x, y, z), ``offset`` in uncompressed bytes.

    ``slope`` and ``intercept`` lead from stored numbers to values.
    """

    size: tuple[int, ...]
    offset: int
    dtype: np.dtype
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def expected_bytes(self) -> int:
        """Length of the uncompressed file."""
        return self.offset + math.prod(self.size) * self.dtype.itemsize


def is_nifti(path: Path) -> bool:
    """True for the endings that this module judges."""
    return path.name.lower().endswith(NIFTI_ENDINGS)


def read_promise(path: Path) -> NiftiPromise:
    """Read and judge the raw header.

    Raises:
        DataError: not a NIfTI file; dimensions, spacing or voxel type that no scan has; a header that promises more
            bytes than the file can hold.
    """
    header = _parse(path, _first_bytes(path))
    dim = [int(n) for n in header["dim"]]
    size = tuple(dim[1 : dim[0] + 1]) if 1 <= dim[0] <= 7 else ()
    if not size or min(size) < 1:
        raise DataError(f"{path}: the header declares the dimensions {dim}; export the scan again")
    while len(size) > 3 and size[-1] == 1:  # many scanners write a fourth axis of length one; readers drop it
        size = size[:-1]
    _check_spacing(path, [float(s) for s in header["pixdim"][1 : min(len(size), 3) + 1]])
    _check_axes(path, header)
    dtype = _voxel_type(path, header)
    if not math.isfinite(float(header["vox_offset"])) or float(header["vox_offset"]) < 0:
        raise DataError(f"{path}: the header places the voxels at byte {header['vox_offset']}; export the scan again")
    promise = NiftiPromise(size, int(header["vox_offset"]), dtype, *_scaling(header))
    _check_length(path, promise)
    return promise


def check_stream(path: Path, promise: NiftiPromise) -> tuple[float, float]:
    """Read the file once, a megabyte at a time and never further than promised; returns its extreme values.

    Raises:
        DataError: the data end early or are corrupt; a voxel is NaN or infinite, as stored or as scaled.
    """
    total = bad = 0
    extremes: list[float] = []
    try:
        with _open(path) as stream:
            total = len(stream.read(promise.offset))
            while total < promise.expected_bytes and (
                block := stream.read(min(_BLOCK, promise.expected_bytes - total))
            ):
                total += len(block)
                bad += _count_not_finite(block, promise.dtype, extremes)
            stream.read(_BLOCK)  # the checksum of a compressed file follows its last byte
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: the compressed data are damaged or cut off ({error}); copy the file again") from error
    if total < promise.expected_bytes:
        raise DataError(
            f"{path}: the header promises {promise.expected_bytes} bytes and the file holds {total}; copy it again"
        )
    if bad:
        # Judged here because ITK reads every such voxel of a NIfTI file as zero.
        voxels = math.prod(promise.size)
        raise DataError(f"{path}: {bad} of {voxels} voxels are NaN or infinite; repair or remove the scan")
    ends = [promise.slope * value + promise.intercept for value in extremes]
    if max(map(abs, ends)) > _FLOAT32_MAX:
        raise DataError(
            f"{path}: the header scales the voxels beyond any number (slope {promise.slope}); export it again"
        )
    return min(ends), max(ends)


def _count_not_finite(block: bytes, dtype: np.dtype, extremes: list[float]) -> int:
    """Also keeps ``extremes``: the least and the greatest value so far."""
    import numpy as np

    values = np.frombuffer(block[: len(block) - len(block) % dtype.itemsize], dtype)
    if not values.size:
        return 0
    low, high = float(values.min()), float(values.max())  # NaN and infinity show in the extremes: rarely a mask
    if not (math.isfinite(low) and math.isfinite(high)):
        return int(values.size - np.isfinite(values).sum())
    extremes[:] = [min([low, *extremes]), max([high, *extremes])]
    return 0


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _first_bytes(path: Path) -> bytes:
    try:
        with _open(path) as stream:
            return stream.read(_HEADER_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the file again") from error


def _parse(path: Path, raw: bytes):  # type: ignore[no-untyped-def]  # nibabel's headers are untyped
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind, length, magics in ((Nifti1Header, 348, (b"n+1", b"ni1")), (Nifti2Header, 540, (b"n+2", b"ni2"))):
        magic = raw[344:347] if length == 348 else raw[4:7]
        if len(raw) >= length and magic in magics:
            return kind(raw[:length], check=False)
    raise DataError(f"{path}: is not a NIfTI file (its first bytes are not a NIfTI header); export the scan again")


def _check_spacing(path: Path, spacing: list[float]) -> None:
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise DataError(f"{path}: the header declares the spacing {spacing} mm; spacing must be positive")


def _check_axes(path: Path, header) -> None:  # type: ignore[no-untyped-def]
    """ITK prints pages about a NaN here and goes on with it."""
    sform = ("srow_x", "srow_y", "srow_z") if header["sform_code"] > 0 else ()
    qform = ("quatern_b", "quatern_c", "quatern_d") if header["qform_code"] > 0 else ()
    values = [float(value) for name in (*sform, *qform) for value in header[name].ravel()]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{path}: the header's axes are not finite numbers; export the scan again")


def _voxel_type(path: Path, header) -> np.dtype:  # type: ignore[no-untyped-def]
    """The voxels' type; refuses colours and complex numbers."""
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(f"{path}: the header declares an unknown voxel type ({error})") from error
    if dtype.kind not in "iuf" or dtype.itemsize < 1:
        raise DataError(f"{path}: holds voxels of type {dtype}, wanted real numbers; convert the scan")
    return dtype


def _scaling(header) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Slope and intercept; as in ITK and nibabel, a slope of 0 or one that is no number means none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _check_length(path: Path, promise: NiftiPromise) -> None:
    """The file's length on disk must be able to hold what the header promises."""
    on_disk = path.stat().st_size
    capacity = on_disk * _DEFLATE_LIMIT if path.name.lower().endswith(".gz") else on_disk
    if promise.expected_bytes > capacity:
        raise DataError(
            f"{path}: the header promises {promise.expected_bytes} bytes for {promise.size} voxels, "
            f"which a file of {on_disk} bytes cannot hold; copy or export the scan again"
        )
