"""Contours of truth and prediction on slices, as pictures that need no other file.

The true outline is white, the predicted one has the structure's colour; this also reads in black and white.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import zoom

from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.evaluation.views import Slice, View, cut, shown_planes

COLOURS = (
    *("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2"),
    *("#9B6CFF", "#A6E22E", "#A0522D", "#00CED1", "#FF8FA3"),
)
"""Okabe and Ito's palette, told apart with colour-blind eyes too; then further ones, before any comes twice."""

TRUTH_COLOUR = "#FFFFFF"
PICTURE_WIDTH_INCH = 7.4
SHOWN_PIXELS = 170
"""Slices are interpolated to about this many pixels on their longer side; viewers differ in how they enlarge."""

_LOWEST_PANEL = 0.4
"""Of the highest panel of a figure."""
_EDGE = [withStroke(linewidth=2.2, foreground="black", alpha=0.65)]


@dataclass(frozen=True)
class Picture:
    """A picture inside the report: its data URI, what is in it, and what it shows for those who cannot see it."""

    uri: str
    caption: str
    alternative: str


def colour(structures: Sequence[Structure], structure: Structure) -> str:
    """The colour of a structure, the same in every picture of a run."""
    return COLOURS[list(structures).index(structure) % len(COLOURS)]


def contour_figure(view: View, structures: Sequence[Structure], structure: Structure) -> Figure:
    """Up to three planes through the structure's largest slice, with the outlines of all ``structures``."""
    slices = [cut(view, structures, structure, plane) for plane in shown_planes(view)]
    extents = [_extent_mm(s) for s in slices]
    widths = [right - left for left, right, _, _ in extents]
    height = max(bottom - top for _, _, bottom, top in extents)
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, PICTURE_WIDTH_INCH * height / (sum(widths) * 1.03)), facecolor="black")
    axes = figure.subplots(1, len(slices), squeeze=False, gridspec_kw={"width_ratios": widths, "wspace": 0.03})[0]
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    limits = np.percentile(view.scan, (1.0, 99.5))
    for panel, picture in zip(axes, slices, strict=True):
        _draw_slice(panel, picture, structures, (float(limits[0]), float(limits[1])))
        _frame(panel, picture, _LOWEST_PANEL * height, _round_length(min(widths)))
    return figure


def svg_uri(figure: Figure) -> str:
    """The figure as an SVG data URI; text becomes outlines, so that it looks the same everywhere."""
    import matplotlib

    buffer = io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ctnet"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=figure.get_facecolor())
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw_slice(panel: Axes, picture: Slice, structures: Sequence[Structure], limits: tuple[float, float]) -> None:
    extent = _extent_mm(picture)
    panel.imshow(_enlarged(picture), cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation="none")
    for structure in structures:
        _outline(panel, structure.mask(picture.truth), picture, TRUTH_COLOUR, 1.0)
        _outline(panel, structure.mask(picture.prediction), picture, colour(structures, structure), 1.5)
    panel.set_axis_off()
    panel.set_anchor("C")


def _extent_mm(picture: Slice) -> tuple[float, float, float, float]:
    """Left, right, bottom, top in mm, with row 0 on top."""
    rows, columns = picture.scan.shape
    return 0.0, columns * picture.spacing[1], rows * picture.spacing[0], 0.0


def _enlarged(picture: Slice) -> NDArray[Any]:
    """The slice linearly interpolated; the grid keeps covering whole voxels, so contours stay in place."""
    factor = max(1, round(SHOWN_PIXELS / max(picture.scan.shape)))
    return np.asarray(zoom(picture.scan, factor, order=1, grid_mode=True, mode="nearest"))


def _outline(panel: Axes, mask: NDArray[np.bool_], picture: Slice, line_colour: str, width: float) -> None:
    if not mask.any():
        return
    # One empty voxel round the slice closes outlines that reach its border.
    padded = np.pad(mask.astype(np.float32), 1)
    y = (np.arange(padded.shape[0]) - 0.5) * picture.spacing[0]
    x = (np.arange(padded.shape[1]) - 0.5) * picture.spacing[1]
    drawn = panel.contour(x, y, padded, levels=[0.5], colors=[line_colour], linewidths=width)
    drawn.set_path_effects([withStroke(linewidth=width + 0.8, foreground="black", alpha=0.5)])


def _frame(panel: Axes, picture: Slice, lowest: float, bar: int) -> None:
    """Letters and scale bar; a few thick slices get black above and below, where they would lie on each other."""
    left, right, bottom, top = _extent_mm(picture)
    margin = max(0.0, lowest - bottom) / 2
    panel.set_xlim(left, right)
    panel.set_ylim(bottom + margin, top - margin)
    _letters(panel, picture)
    _scale_bar(panel, (right, top - margin, bottom + margin), bar)


def _letters(panel: Axes, picture: Slice) -> None:
    left, right, top, bottom = picture.letters
    places = ((0.03, 0.5, left), (0.97, 0.5, right), (0.5, 0.955, top), (0.5, 0.045, bottom))
    for x, y, text in places:
        panel.text(x, y, text, transform=panel.transAxes, ha="center", va="center", **_TEXT)
    panel.text(0.03, 0.955, picture.plane, transform=panel.transAxes, ha="left", va="center", **_SMALL)


def _round_length(width: float) -> int:
    """The longest round number of mm that is no more than a third of ``width``."""
    return max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= width / 3), default=1)


def _scale_bar(panel: Axes, shown: tuple[float, float, float], length: int) -> None:
    """A bar of ``length`` mm low on the right of what is ``shown`` (width, top, bottom); all panels have one scale."""
    width, top, bottom = shown
    height = bottom - top
    right, y = width * 0.96, bottom - 0.04 * height
    panel.plot([right - length, right], [y, y], color="white", linewidth=1.6, path_effects=_EDGE, solid_capstyle="butt")
    place = (right - length / 2, y - 0.018 * height)
    panel.text(*place, f"{length} mm", ha="center", va="bottom", **_SMALL)


_TEXT: dict[str, Any] = {"color": "white", "fontsize": 8.5, "path_effects": _EDGE}
_SMALL: dict[str, Any] = {**_TEXT, "fontsize": 6.5}
