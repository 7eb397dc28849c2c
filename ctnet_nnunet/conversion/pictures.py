"""A small picture of a case: three planes through its labels, for the summary page and for refusals.

Drawn with numpy and Pillow in a few milliseconds, so that a picture per case does not slow a conversion down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from ctnet_nnunet.conversion.geometry import to_ras

HEIGHT = 200
"""Pixels of the longest side of a plane."""
COLOURS = (
    (230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0), (0, 114, 178),
    (136, 34, 85),
)  # fmt: skip
"""Okabe and Ito's palette and a wine red, told apart with colour-blind eyes too."""
_LABEL_OPACITY = 0.45
# Plane → what lies at the left, right, top and bottom of its picture.
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def draw_case(image: sitk.Image, label: NDArray[Any] | None, path: Path) -> None:
    """Write a PNG with an axial, a coronal and a sagittal plane of a RAS image; labels (z, y, x) in colour.

    Radiological order: the patient's right is on the left, anterior or superior on top. A 2D image is one plane.
    """
    array = sitk.GetArrayViewFromImage(image)
    spacing = image.GetSpacing()[::-1]
    limits = np.percentile(array[tuple(slice(None, None, max(1, n // 64)) for n in array.shape)], (1, 99.5))
    if array.ndim == 2:
        panels = [_panel(array, label, (spacing[0], spacing[1]), limits, "")]
    else:
        centre = _centre(label) if label is not None and label.any() else tuple(n // 2 for n in array.shape)
        panels = [
            _panel(*_cut(array, label, plane, centre[axis], axis), _others(spacing, axis), limits, plane)
            for axis, plane in enumerate(_LETTERS)
        ]
    _save(panels, path)


def draw_overlay(image: sitk.Image, label: sitk.Image, path: Path) -> bool:
    """Write what a refused label map looks like over its image, both placed as their headers say.

    Returns:
        Whether any of it lies inside the image.
    """
    turned = to_ras(image)
    placed = sitk.Resample(sitk.Cast(label, sitk.sitkInt32), turned, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    array = sitk.GetArrayFromImage(placed)
    draw_case(turned, array, path)
    return bool(array.any())


def _centre(label: NDArray[Any]) -> tuple[int, ...]:
    """The slice with the largest labelled area, for each axis."""
    mask = label > 0
    areas = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return tuple(int(np.argmax(area)) for area in areas)


def _others(spacing: Sequence[float], axis: int) -> tuple[float, float]:
    rows, columns = (s for a, s in enumerate(spacing) if a != axis)
    return rows, columns


def _cut(
    array: NDArray[Any], label: NDArray[Any] | None, plane: str, index: int, axis: int
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """A plane of (z, y, x) arrays in RAS, turned to the order of :data:`_LETTERS`: rows and columns run backwards."""
    cuts = [None if a is None else np.take(a, index, axis)[::-1, ::-1] for a in (array, label)]
    assert cuts[0] is not None
    return cuts[0], cuts[1]


def _panel(
    plane: NDArray[Any], label: NDArray[Any] | None, spacing: tuple[float, float], limits: NDArray[Any], name: str
) -> PillowImage.Image:
    low, high = float(limits[0]), float(max(limits[1], limits[0] + 1e-6))
    grey = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)
    colours = np.repeat((255 * grey)[..., None], 3, axis=-1)
    if label is not None and label.any():
        palette = np.array(COLOURS, np.float32)
        shown = label > 0
        tint = palette[(label[shown].astype(np.int64) - 1) % len(COLOURS)]
        colours[shown] = (1 - _LABEL_OPACITY) * colours[shown] + _LABEL_OPACITY * tint
    size = np.array(plane.shape) * spacing
    height, width = np.maximum(1, np.rint(HEIGHT * size / size.max())).astype(int).tolist()
    panel = PillowImage.fromarray(colours.astype(np.uint8)).resize((width, height), PillowImage.Resampling.BILINEAR)
    if name:
        _write_letters(panel, _LETTERS[name])
    return panel


def _write_letters(panel: PillowImage.Image, letters: str) -> None:
    draw = ImageDraw.Draw(panel)
    width, height = panel.size
    places = ((2, height // 2 - 5), (width - 8, height // 2 - 5), (width // 2 - 3, 1), (width // 2 - 3, height - 12))
    for place, letter in zip(places, letters, strict=True):
        draw.text(place, letter, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))


def _save(panels: Sequence[PillowImage.Image], path: Path) -> None:
    gap = 4
    size = (sum(p.width for p in panels) + gap * (len(panels) - 1), max(p.height for p in panels))
    sheet = PillowImage.new("RGB", size)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (size[1] - panel.height) // 2))
        left += panel.width + gap
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
