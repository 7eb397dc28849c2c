"""A study as it was read: its stacks with their roles, turned in their own plane to one order, never resampled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import Plane, planes_of_grid

_ANISOTROPIC = 1.5


@dataclass(frozen=True)
class ReadStack:
    """One role's slices. ``frames`` holds an image for each cine frame, all on one grid; ``shape`` is (K, H, W).

    A guest may come without images; then ``planes`` alone say where it lies.
    """

    role: str
    source: str
    planes: tuple[Plane, ...]
    shape: tuple[int, int, int]
    frames: tuple[sitk.Image, ...] = ()
    frame_of_reference: str = ""

    @staticmethod
    def of_images(
        role: str,
        source: str,
        frames: Sequence[sitk.Image],
        frame_of_reference: str = "",
        planes: Sequence[Plane] | None = None,
    ) -> ReadStack:
        """A stack of images with their slices along the third axis.

        ``planes`` are the slices as the source has them, in the images' order; None: the images' grid is all there is.
        """
        turned = tuple(in_canonical_order(frame) for frame in frames)
        size: tuple[int, int, int] = turned[0].GetSize()
        found = planes_of_image(turned[0]) if planes is None else planes_in_canonical_order(planes, frames[0])
        return ReadStack(role, source, tuple(found), (size[2], size[1], size[0]), turned, frame_of_reference)


@dataclass
class ReadStudy:
    """A study's usable stacks, what was left out (name → reason), and what is to be said."""

    name: str
    group: str = ""
    stacks: list[ReadStack] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RolePattern:
    """Series and files whose description or name fits ``pattern`` have ``role``."""

    pattern: re.Pattern[str]
    role: str


def parse_roles(texts: Sequence[str]) -> list[RolePattern]:
    """``REGEX=ROLE`` as typed.

    Raises:
        DataError: No ``=``, or no regular expression.
    """
    found = []
    for text in texts:
        pattern, equals, role = text.rpartition("=")
        if not equals or not pattern or not role:
            raise DataError(f"--role {text!r}: wanted REGEX=ROLE, for example sax=SAX")
        try:
            found.append(RolePattern(re.compile(pattern, re.IGNORECASE), role))
        except re.error as error:
            raise DataError(f"--role {text!r}: is no regular expression ({error})") from None
    return found


def role_of(patterns: Sequence[RolePattern], *names: str) -> str:
    """The role of what is called by any of ``names``; empty where no pattern fits.

    Raises:
        DataError: Patterns of several roles fit.
    """
    fitting = {item.role for item in patterns for name in names if item.pattern.search(name)}
    if len(fitting) > 1:
        raise DataError(f"fits the roles {', '.join(sorted(fitting))}; make --role narrower")
    return next(iter(fitting), "")


def slices_last(image: sitk.Image) -> sitk.Image:
    """The image with its slices along the third axis: the one of clearly the largest spacing, or of a single voxel."""
    spacing, size = np.array(image.GetSpacing()), image.GetSize()
    widest = int(spacing.argmax())
    others = np.delete(spacing, widest)
    single = [axis for axis in range(3) if size[axis] == 1]
    candidates = [widest] if spacing[widest] >= _ANISOTROPIC * others.max() else single
    axis = candidates[0] if len(candidates) == 1 else 2
    order = [other for other in range(3) if other != axis] + [axis]
    return image if order == [0, 1, 2] else sitk.PermuteAxes(image, order)


def in_canonical_order(image: sitk.Image) -> sitk.Image:
    """The stack with its axes as in a RAS image, as near as its slices allow; they stay along the third axis.

    So an axial stack looks as converted training scans do. Every voxel keeps its value and its place in the patient.
    """
    order, flipped = _turn(image)
    turned = sitk.PermuteAxes(image, order) if order != [0, 1, 2] else image
    return sitk.Flip(turned, flipped)


def planes_in_canonical_order(planes: Sequence[Plane], image: sitk.Image) -> list[Plane]:
    """The planes of an image's slices, turned as :func:`in_canonical_order` turns the image itself."""
    order, flipped = _turn(image)
    width, height = (image.GetSize()[axis] for axis in order[:2])
    found = []
    for plane in planes:
        if order[0]:
            plane = replace(plane, columns=plane.rows, rows=plane.columns, spacing=plane.spacing[::-1])
        if flipped[0]:
            x, y, z = plane.columns
            plane = replace(plane.window(0, width - 1), columns=(-x, -y, -z))
        if flipped[1]:
            x, y, z = plane.rows
            plane = replace(plane.window(height - 1, 0), rows=(-x, -y, -z))
        found.append(plane)
    return found[::-1] if flipped[2] else found


def planes_of_image(image: sitk.Image) -> list[Plane]:
    """The slices of an image's grid, along its third axis."""
    return planes_of_grid(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _turn(image: sitk.Image) -> tuple[list[int], list[bool]]:
    """The order of the axes, and which of them are then flipped."""
    axes = np.array(image.GetDirection()).reshape(3, 3)
    main = np.abs(axes).argmax(axis=0)
    order = [1, 0, 2] if main[0] > main[1] else [0, 1, 2]
    axes, main = axes[:, order], main[order]
    towards_ras = axes[main, range(3)] * np.array([-1.0, -1.0, 1.0])[main]
    return order, [bool(towards < 0) for towards in towards_ras]


def keep_one_frame_of_reference(study: ReadStudy, hosts: Sequence[str]) -> None:
    """Refuse the stacks that lie in another frame of reference than the study's first host."""
    if not study.stacks:
        return
    first = next((stack for stack in study.stacks if stack.role in hosts), study.stacks[0])
    for stack in list(study.stacks):
        if stack.frame_of_reference == first.frame_of_reference:
            continue
        study.stacks.remove(stack)
        if stack.frame_of_reference and first.frame_of_reference:
            why = f"lies in another frame of reference than {first.source} (the patient was moved between them)"
        else:
            why = f"cannot be told to lie in the frame of reference of {first.source}, since one of them names none"
        study.refused[stack.source] = f"{why}, so lines would be wrong; make it a study of its own"
