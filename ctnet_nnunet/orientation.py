"""How an image lies: three letters such as ``RAS``, the patient's sides that its axes run to."""

from __future__ import annotations

from collections.abc import Sequence

import SimpleITK as sitk

FLAT = "2D"
"""What stands in place of letters for an image of two axes."""


def orientation(image: sitk.Image) -> str:
    """Three letters such as ``LPS``: where the axes run to, or as near to it as an oblique scan allows."""
    return letters_of(image.GetDirection())


def letters_of(direction: Sequence[float]) -> str:
    """The same of a header's direction cosines, row by row."""
    if len(direction) != 9:
        return FLAT
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(list(direction)))
