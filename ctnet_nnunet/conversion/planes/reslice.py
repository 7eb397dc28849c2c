"""Oblique multi-plane studies cut out of isotropic volumes, with exactly known geometry.

Guests are prescribed on the anatomy: in every volume through its centre at the same angles. The host is tilted and
shifted at random, so that where the guests cut it has to be read from the image. All planes lie inside of the volume:
its corners would give their tilt away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.planes.stacks import ReadStack, ReadStudy
from ctnet_nnunet.conversion.read import read_image
from ctnet_nnunet.errors import DataError

_MOST_ANISOTROPY = 1.5
_LEAST_PIXELS = 8
_TILT_DEGREES = 12.0
_USED_SHARE = 0.85
"""Of the largest box that fits; the rest is room for the host's random shift."""


@dataclass(frozen=True)
class View:
    """A role's prescription: axes (columns, rows, through) in LPS, and whether it is a stack or a single plane."""

    role: str
    columns: tuple[float, float, float]
    rows: tuple[float, float, float]
    host: bool = False

    def axes(self) -> np.ndarray:
        """(3, 3), one axis a column, made orthonormal."""
        along = np.array(self.columns) / np.linalg.norm(self.columns)
        down = np.array(self.rows) - (np.array(self.rows) @ along) * along
        down = down / np.linalg.norm(down)
        return np.stack([along, down, np.cross(along, down)], axis=1)


_APEX = (1.0, -1.0, -1.0)
SCHEMES: Mapping[str, tuple[View, ...]] = {
    # A heart's long axis runs to the left, forwards and down; long-axis views hold it, short-axis slices cut it.
    "cardiac": (
        View("SAX", (1.0, 1.0, 0.0), (1.0, -1.0, 2.0), host=True),
        View("2CH", _APEX, (0.3, 1.0, -0.7)),
        View("4CH", _APEX, (1.0, 0.2, 0.8)),
    ),
    # Guests at right angles to each other, along the patient's axes; the host is tilted by its random rotation alone.
    "orthogonal": (
        View("AX", (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), host=True),
        View("COR", (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
        View("SAG", (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    ),
    # Double-oblique on purpose: no line is parallel to an image's edge.
    "head": (
        View("AX", (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), host=True),
        View("COR", (1.0, 0.15, -0.1), (0.1, -0.25, -1.0)),
        View("SAG", (0.12, 1.0, 0.1), (0.05, 0.1, -1.0)),
    ),
}


@dataclass(frozen=True)
class Reslicing:
    """How volumes are cut: the scheme, the slice distance in mm (None: three voxels), the seed, studies a volume."""

    scheme: str
    gap: float | None = None
    seed: int = 0
    repeat: int = 1

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise DataError(f"--scheme {self.scheme}: no such scheme; there are {', '.join(SCHEMES)}")
        if self.gap is not None and not 0 < self.gap < math.inf:
            raise DataError(f"--gap {self.gap}: give a number of mm above 0")


def reslice_volume(name: str, file: Path, how: Reslicing, number: int, max_voxels: int) -> list[ReadStudy]:
    """The studies of one volume; ``number`` tells volumes with one seed apart.

    Raises:
        DataError: Unreadable, not isotropic or too small.
    """
    volume, notes = read_image(Image(file), max_voxels)
    if volume.GetDimension() != 3:
        raise DataError(f"{file}: is a 2D image; give volumes")
    spacing = volume.GetSpacing()
    if max(spacing) > _MOST_ANISOTROPY * min(spacing):
        raise DataError(
            f"{file}: its voxels are {' × '.join(f'{s:.3g}' for s in spacing)} mm; oblique planes need a volume whose "
            f"spacings differ by no more than {_MOST_ANISOTROPY} times"
        )
    studies = []
    for index in range(how.repeat):
        rng = np.random.default_rng([how.seed, number, index])
        study = ReadStudy(name if how.repeat == 1 else f"{name}-r{index}", group=name, notes=list(notes))
        for view in SCHEMES[how.scheme]:
            study.stacks.append(_cut(volume, view, how, rng, file))
        studies.append(study)
    return studies


def _cut(volume: sitk.Image, view: View, how: Reslicing, rng: np.random.Generator, file: Path) -> ReadStack:
    axes = view.axes()
    if view.host:
        axes = _tilt(rng) @ axes
    half, centre = _box_of(volume)
    own = np.array(volume.GetDirection()).reshape(3, 3)
    inside = _largest_box(own.T @ axes, half)
    pixel = float(min(volume.GetSpacing()))
    gap = how.gap or 3 * pixel
    shift = np.zeros(3)
    if view.host:
        room = (1 - _USED_SHARE) * inside
        shift, inside = rng.uniform(-room, room), _USED_SHARE * inside
    counts = np.maximum(1, np.floor(2 * inside / [pixel, pixel, gap])).astype(int)
    if not view.host:
        counts[2] = 1
    if counts[:2].min() < _LEAST_PIXELS:
        raise DataError(
            f"{file}: is too small for oblique planes, {counts[0]}×{counts[1]} pixels fit; give larger volumes"
        )
    spacing = np.array([pixel, pixel, gap])
    origin = centre + axes @ (shift - (counts - 1) / 2 * spacing)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(counts.tolist())
    resampler.SetOutputSpacing(spacing.tolist())
    resampler.SetOutputOrigin(origin.tolist())
    resampler.SetOutputDirection(axes.ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    return ReadStack.of_images(view.role, f"{view.role} of {file.name}", [resampler.Execute(volume)])


def _tilt(rng: np.random.Generator) -> np.ndarray:
    """A random rotation by up to 12° about each axis."""
    a, b, c = np.radians(rng.uniform(-_TILT_DEGREES, _TILT_DEGREES, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turned: np.ndarray = about_z @ about_y @ about_x
    return turned


def _box_of(volume: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Half edges in mm between the outermost voxels' centres, and the centre (LPS)."""
    last = np.array(volume.GetSize()) - 1.0
    half = last * np.array(volume.GetSpacing()) / 2
    return half, np.array(volume.TransformContinuousIndexToPhysicalPoint((last / 2).tolist()))


def _largest_box(turn: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Half edges of a box about the same centre, turned by ``turn`` against one of ``half`` edges, that lies within it.

    Its proportions are those that the volume has along the turned axes.
    """
    wanted = np.abs(turn.T) @ half
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3))) * wanted
    reach = np.abs(corners @ turn.T).max(axis=0)
    box: np.ndarray = wanted * float((half / reach).min())
    return box
