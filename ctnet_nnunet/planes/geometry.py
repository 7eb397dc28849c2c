"""Imaging planes in patient coordinates (DICOM's LPS, mm): where they lie, where two of them cut, where a slice is.

The host's pixel (r, c) lies at P = O + c·Δc·X + r·Δr·Y. Its signed distance to a guest plane through O_g with normal
n_g is affine in (r, c); divided by the sine of the angle between the planes it is the distance to their line within the
host, in mm whatever the pixels' shape. The tasks built on this are of Zhang et al., Medical Image Analysis 94:103151
(2024), doi 10.1016/j.media.2024.103151.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
LocationAxis = Literal["auto", "cardiac", "largest"]

LEAST_ANGLE_DEGREES = 15.0
"""Planes at a smaller angle have no usable line."""
CARDIAC_ROLES = frozenset({"SAX", "2CH", "3CH", "4CH", "LAX"})
_TO_APEX = np.array([1.0, -1.0, -1.0]) / math.sqrt(3.0)
"""Left, anterior, inferior in LPS: from base to apex of a heart in its usual place."""
_LEAST_TOWARDS_APEX = 0.2
_UNIT_TOLERANCE = 1e-3
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Plane:
    """A slice.

    Attributes:
        position: Centre of pixel (0, 0), mm.
        columns: Unit vector along which the column index grows (DICOM's first three direction cosines).
        rows: Unit vector along which the row index grows, at a right angle to ``columns``.
        spacing: Distance of neighbouring rows and of neighbouring columns, mm, in this order, as DICOM's PixelSpacing.
        thickness: mm; 0 where it is not known.
    """

    position: Vector
    columns: Vector
    rows: Vector
    spacing: tuple[float, float]
    thickness: float = 0.0

    @property
    def normal(self) -> Array:
        """Unit vector ``columns`` × ``rows``."""
        return np.cross(self.columns, self.rows)

    def points(self, rows: Array | float, columns: Array | float) -> Array:
        """Where pixels lie: (..., 3) mm for indices of any one shape; fractions lie between pixels."""
        down = np.asarray(rows, float)[..., None] * (self.spacing[0] * np.array(self.rows))
        along = np.asarray(columns, float)[..., None] * (self.spacing[1] * np.array(self.columns))
        return np.array(self.position) + down + along

    def window(self, row: float, column: float) -> Plane:
        """The same plane with pixel (row, column) as its first one; both may lie outside of the image."""
        return replace(self, position=_vector(self.points(row, column)))


@dataclass(frozen=True)
class Line:
    """Where a guest cuts a host: pixel (r, c) lies ``per_row``·r + ``per_column``·c + ``offset`` mm from it, signed."""

    per_row: float
    per_column: float
    offset: float

    def distance(self, shape: Sequence[int]) -> Array:
        """Signed distance in mm of every pixel of an image (H, W)."""
        rows, columns = np.arange(shape[0], dtype=float), np.arange(shape[1], dtype=float)
        return self.per_row * rows[:, None] + self.per_column * columns + self.offset

    def heatmap(self, shape: Sequence[int], sigma_mm: float) -> Array:
        """exp(−d² / 2σ²), 1 on the line, for every pixel of an image (H, W)."""
        return np.exp(-0.5 * (self.distance(shape) / sigma_mm) ** 2)

    def passes(self, shape: Sequence[int], within_mm: float) -> bool:
        """Whether some pixel of an image (H, W) lies closer than ``within_mm``."""
        return bool(np.abs(self.distance(shape)).min() < within_mm)


def plane_from_dicom(
    position: Sequence[float], orientation: Sequence[float], pixel_spacing: Sequence[float], thickness: float = 0.0
) -> Plane:
    """A plane from ImagePositionPatient, ImageOrientationPatient and PixelSpacing (row spacing first).

    Raises:
        DataError: Numbers that are not finite, spacings that are not positive, axes that are no right-angled unit
            vectors.
    """
    numbers = [*position, *orientation, *pixel_spacing]
    lengths = (len(position), len(orientation), len(pixel_spacing))
    if lengths != (3, 6, 2) or not all(map(math.isfinite, numbers)):
        raise DataError("a plane wants 3 numbers of a position, 6 of an orientation and 2 of a spacing, all finite")
    along, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    ones = np.array([np.linalg.norm(along), np.linalg.norm(down), 1 + along @ down])
    if np.abs(ones - 1).max() > _UNIT_TOLERANCE or min(pixel_spacing) <= 0:
        raise DataError("a plane's orientation is two unit vectors at a right angle, and its spacing is positive")
    along = along / np.linalg.norm(along)
    down = down - (down @ along) * along
    spacing = (float(pixel_spacing[0]), float(pixel_spacing[1]))
    return Plane(_vector(position), _vector(along), _vector(down / np.linalg.norm(down)), spacing, float(thickness))


def planes_of_grid(
    size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> list[Plane]:
    """The slices of an image as SimpleITK describes it: (x, y, z), direction row by row, LPS; slices along z."""
    axes = np.array(direction, float).reshape(3, 3)
    along, down, through = axes[:, 0], axes[:, 1], axes[:, 2]
    first = np.array(origin, float)
    return [
        Plane(
            _vector(first + k * spacing[2] * through),
            _vector(along),
            _vector(down),
            (float(spacing[1]), float(spacing[0])),
            float(spacing[2]),
        )
        for k in range(size[2])
    ]


def planes_of_affine(affine: Array, size: Sequence[int]) -> list[Plane]:
    """The slices of a NIfTI image: voxel (i, j, k) → RAS mm by ``affine`` (4, 4); slices along k, rows along j."""
    linear = _LPS_FROM_RAS @ np.asarray(affine, float)[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    origin = _LPS_FROM_RAS @ np.asarray(affine, float)[:3, 3]
    return planes_of_grid(size, spacing.tolist(), origin.tolist(), (linear / spacing).ravel().tolist())


def intersection(host: Plane, guest: Plane, least_angle: float = LEAST_ANGLE_DEGREES) -> Line | None:
    """The line in which ``guest`` cuts ``host``; None where they are parallel to within ``least_angle`` degrees."""
    normal = guest.normal
    sine = float(np.linalg.norm(np.cross(host.normal, normal)))
    if sine < math.sin(math.radians(least_angle)):
        return None
    return Line(
        per_row=host.spacing[0] * float(normal @ np.array(host.rows)) / sine,
        per_column=host.spacing[1] * float(normal @ np.array(host.columns)) / sine,
        offset=float(normal @ (np.array(host.position) - np.array(guest.position))) / sine,
    )


def location_direction(normal: Array, role: str, axis: LocationAxis = "auto") -> Array:
    """The unit vector ±``normal`` along which a slice's location grows.

    ``cardiac`` runs from base to apex of a heart in its usual place, ``largest`` makes the normal's largest component
    positive (left, posterior, superior); ``auto`` is ``cardiac`` for the heart's own roles. A normal that hardly
    tells base from apex falls back on ``largest``.
    """
    if axis == "cardiac" or (axis == "auto" and role.upper() in CARDIAC_ROLES):
        towards = float(normal @ _TO_APEX)
        if abs(towards) >= _LEAST_TOWARDS_APEX:
            return normal if towards > 0 else -normal
    return normal if normal[np.argmax(np.abs(normal))] > 0 else -normal


def slice_locations(planes: Sequence[Plane], role: str, axis: LocationAxis = "auto") -> Array | None:
    """Where each slice of a stack lies between its ends, 0..1, by real positions; None for a single slice.

    0 and 1 are the ends along :func:`location_direction`, whatever the order of the slices or the sign of their normal.
    """
    along = location_direction(planes[0].normal, role, axis)
    heights = np.array([along @ np.array(plane.position) for plane in planes])
    extent = float(np.ptp(heights))
    if len(planes) < 2 or extent <= 0:
        return None
    return (heights - heights.min()) / extent


def disagreement(first: Sequence[Plane], second: Sequence[Plane], shape: Sequence[int]) -> float:
    """The largest distance in mm between the same corner pixels of two stacks (H, W); inf for other counts."""
    if len(first) != len(second):
        return math.inf
    rows, columns = np.meshgrid([0.0, shape[0] - 1.0], [0.0, shape[1] - 1.0], indexing="ij")
    pairs = zip(first, second, strict=True)
    gaps = [np.linalg.norm(a.points(rows, columns) - b.points(rows, columns), axis=-1).max() for a, b in pairs]
    return float(max(gaps, default=0.0))


def _vector(values: Sequence[float] | Array) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
