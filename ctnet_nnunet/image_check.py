"""Judge an image file before it is used: first its header, then, where asked, its voxels.

The readers of nnU-Net convert to float32 before anything looks at the size, so a file of 4 MB can take 24 GB. Every
path by which a scan of unknown origin enters goes through :func:`check_image_file` first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctnet_nnunet import nifti_check, text_header_check
from ctnet_nnunet.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk

#: Largest accepted number of voxels in one file (4 GiB as float32).
MAX_VOXELS = 1024**3
_BOMB_BYTES, _BOMB_RATIO = 256 * 2**20, 200
"""Scans with noise compress 2 to 4 times, skull-stripped ones to 50 times."""
_ORTHONORMAL_TOLERANCE = 1e-3
_GIPL_HEADER_BYTES = 256


@dataclass(frozen=True)
class ImageHeader:
    """Geometry of an image file, in file order (x, y, z); spacing and origin in mm, direction row by row."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    components: int
    voxel_bytes: int

    @property
    def promised_bytes(self) -> int:
        """What the voxels take, uncompressed."""
        return math.prod(self.size) * self.components * self.voxel_bytes

    def same_grid(self, other: ImageHeader, tolerance: float = 1e-3) -> bool:
        """True when both lie on the same voxels: equal size, the rest within ``tolerance`` (mm or cosine)."""
        if self.size != other.size:
            return False
        ours, theirs = (h.spacing + h.origin + h.direction for h in (self, other))
        return all(abs(a - b) <= tolerance for a, b in zip(ours, theirs, strict=True))


def check_image_file(path: Path, *, voxels: bool = False, max_voxels: int = MAX_VOXELS) -> ImageHeader:
    """Check one image file; return its header.

    Args:
        path: NIfTI, NRRD, MetaImage, GIPL, TIFF, PNG or BMP.
        voxels: also read the voxels: they must be complete, finite and not all equal.
        max_voxels: refused above this, judged from the header alone.

    Raises:
        DataError: one line with the file, the reason and the remedy.
    """
    header = read_image_header(path, max_voxels)
    if voxels:
        _refuse_bomb(path, header)
        if nifti_check.is_nifti(path):  # as a stream: a scan that is refused never lies in memory
            low, high = nifti_check.check_stream(path, nifti_check.read_promise(path))
            if low == high:
                raise DataError(_all_equal(str(path), low))
        else:
            check_integrity(path)
            check_voxels(_read_voxels(path), str(path))
    return header


def read_image_header(path: Path, max_voxels: int = MAX_VOXELS) -> ImageHeader:
    """Read and judge a header; no voxel is read.

    Raises:
        DataError: missing or unreadable; neither 2D nor 3D; too large; spacing not finite and positive; axes that are
            not orthonormal.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file (or a link to nothing)")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; copy it again")
    if nifti_check.is_nifti(path):
        _check_size(path, nifti_check.read_promise(path).size, max_voxels)
    header = _itk_header(path)
    _check_size(path, header.size, max_voxels)
    if text_header_check.has_text_header(path):
        text_header_check.check_text_header(path, header.promised_bytes)
    if not all(math.isfinite(s) and s > 0 for s in header.spacing):
        raise DataError(f"{path}: the header declares the spacing {header.spacing} mm; spacing must be positive")
    if not all(math.isfinite(o) for o in header.origin) or not is_orthonormal(header.direction):
        raise DataError(f"{path}: the header's axes are not finite and orthonormal; resample the scan to a plain grid")
    return header


def refuse_other_grids(case: str, headers: Sequence[tuple[str, ImageHeader]]) -> None:
    """Raise DataError when a case's files do not share one grid, naming the case and both grids."""
    first_name, first = headers[0]
    for name, header in headers[1:]:
        if not header.same_grid(first):
            raise DataError(
                f"case {case}: {name} lies on another grid ({grid_text(header)}) than {first_name} "
                f"({grid_text(first)}); register and resample them to one grid"
            )


def grid_text(header: ImageHeader) -> str:
    """Size, spacing and origin, for a message."""
    size = "×".join(map(str, header.size))
    spacing, origin = (", ".join(f"{value:.4g}" for value in values) for values in (header.spacing, header.origin))
    return f"{size} voxels of {spacing} mm from {origin}"


def check_integrity(path: Path) -> None:
    """Check that the file holds what its header promises, for the formats whose readers do not notice.

    Raises:
        DataError: damaged or cut-off data.
    """
    if nifti_check.is_nifti(path):
        nifti_check.check_stream(path, nifti_check.read_promise(path))
    elif path.name.lower().endswith(".gipl"):
        header = _itk_header(path)
        promised = _GIPL_HEADER_BYTES + math.prod(header.size) * header.voxel_bytes
        if promised > path.stat().st_size:
            raise DataError(f"{path}: the header promises {promised} bytes, the file has fewer; copy it again")


def check_voxels(array: np.ndarray, name: str) -> None:
    """Check one channel of any shape; ``name`` says which in the message.

    Raises:
        DataError: NaN or infinite voxels; all voxels equal.
    """
    import numpy as np

    low, high = float(array.min()), float(array.max())  # NaN and infinity both show in the extremes: no mask needed
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{name}: {bad} of {array.size} voxels are NaN or infinite; repair or remove the scan")
    if low == high:
        raise DataError(_all_equal(name, low))


def _all_equal(name: str, value: float) -> str:
    return f"{name}: all voxels are {value:g}; remove the scan"


def _refuse_bomb(path: Path, header: ImageHeader) -> None:
    """A scan has noise, so it never shrinks as far as a file that is made to fill the memory."""
    promised = header.promised_bytes
    ratio = promised / path.stat().st_size
    if promised > _BOMB_BYTES and ratio > _BOMB_RATIO:
        raise DataError(
            f"{path}: unpacks to {ratio:.0f} times its size ({promised >> 20} MB), which no scan does; export it again"
        )


def _check_size(path: Path, size: tuple[int, ...], max_voxels: int) -> None:
    if len(size) not in (2, 3):
        raise DataError(f"{path}: has {len(size)} dimensions, wanted 2 or 3; write one file per channel")
    if math.prod(size) > max_voxels:
        shape = " x ".join(map(str, size))
        raise DataError(f"{path}: the header declares {shape} voxels, above the limit of {max_voxels}; crop the scan")


def _itk_header(path: Path) -> ImageHeader:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _QuietItk(sitk):
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"{path}: the header cannot be used ({_last_line(error)})") from error
    return ImageHeader(
        tuple(int(n) for n in reader.GetSize()),
        tuple(reader.GetSpacing()),
        tuple(reader.GetOrigin()),
        tuple(reader.GetDirection()),
        reader.GetNumberOfComponents(),
        sitk.Image([1] * reader.GetDimension(), reader.GetPixelID()).GetSizeOfPixelComponent(),
    )


def _read_voxels(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    try:
        with _QuietItk(sitk):
            image: sitk.Image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: the voxels cannot be read ({_last_line(error)})") from error
    array: np.ndarray = sitk.GetArrayFromImage(image)
    return array


class _QuietItk:
    """Turn ITK's warnings off for a while: what they say is judged here, with the file's name."""

    def __init__(self, sitk_module: object) -> None:
        self._process_object = sitk_module.ProcessObject  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        self._before = self._process_object.GetGlobalWarningDisplay()
        self._process_object.SetGlobalWarningDisplay(False)

    def __exit__(self, *_: object) -> None:
        self._process_object.SetGlobalWarningDisplay(self._before)


def is_orthonormal(direction: tuple[float, ...]) -> bool:
    """True when the rows of a direction matrix (row by row) are finite unit vectors at right angles."""
    n = math.isqrt(len(direction))
    rows = [direction[i * n : (i + 1) * n] for i in range(n)]
    if not all(math.isfinite(value) for value in direction):
        return False
    dots = [(i == j, sum(a * b for a, b in zip(rows[i], rows[j], strict=True))) for i in range(n) for j in range(n)]
    return all(abs(dot - same) <= _ORTHONORMAL_TOLERANCE for same, dot in dots)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
