"""The slices of a study as one picture, or as a page with a table."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.evaluation.pictures import COLOURS
from ctnet_nnunet.evaluation.report import style_sheet
from ctnet_nnunet.files import write_text
from ctnet_nnunet.inspection.planes import ShownSlice, ShownStudy

COLUMNS = 4
PANEL_INCH, TITLE_INCH, HEAD_INCH = 2.6, 0.25, 0.35
FOUND = 0.5


def write_picture(study: ShownStudy, file: Path) -> None:
    """Write a PNG, or an HTML page that needs no other file, by the ending of ``file``.

    Raises:
        SetupError: Another ending, or a folder that cannot be written.
    """
    if file.suffix not in (".png", ".html"):
        raise SetupError(f"-o {file}: end it in .png or .html")
    buffer = io.BytesIO()
    _figure(study).savefig(buffer, format="png", dpi=110, facecolor="black")
    if file.suffix == ".html":
        uri = "data:image/png;base64," + b64encode(buffer.getvalue()).decode("ascii")
        write_text(file, _page(study, uri))
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        raise SetupError(f"-o {file}: could not be written ({error.strerror})") from error


def _figure(study: ShownStudy) -> Figure:
    rows = math.ceil(len(study.slices) / COLUMNS)
    columns = min(COLUMNS, len(study.slices))
    height = rows * (PANEL_INCH + TITLE_INCH) + HEAD_INCH
    figure = Figure(figsize=(columns * PANEL_INCH, height), facecolor="black")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=1 - (HEAD_INCH + TITLE_INCH) / height, wspace=0.03, hspace=0.1
    )
    for panel in panels:
        panel.set_axis_off()
    for panel, item in zip(panels, study.slices, strict=False):
        _draw(panel, item)
    for index, guest in enumerate(study.guests):
        place = (0.02 + 0.12 * index, 0.995)
        figure.text(*place, guest, color=COLOURS[index % len(COLOURS)], fontsize=9, va="top")
    figure.text(0.98, 0.995, "solid: true, dotted: predicted", color="white", fontsize=8, va="top", ha="right")
    return figure


def _draw(panel: Axes, item: ShownSlice) -> None:
    height, width = item.image.shape
    aspect = item.spacing[0] / item.spacing[1]
    low, high = np.percentile(item.image, (1, 99.5))
    panel.imshow(item.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="bilinear")
    for index, line in enumerate(item.lines):
        shade = COLOURS[index % len(COLOURS)]
        if line is not None and item.crossed_by(index):
            panel.contour(line.distance(item.image.shape), levels=[0.0], colors=[shade], linewidths=1.2)
        if item.heat is not None and (weight := np.where(item.heat[index] > FOUND, item.heat[index], 0)).sum() > 1:
            panel.axline(*_fitted(weight, item.spacing), color=shade, linestyle=":", linewidth=1.8)
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)
    panel.set_title(_caption(item), fontsize=6.5, color="white", pad=2)


def _fitted(weight: np.ndarray, spacing: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two points (column, row) of the line through the weights' centroid along their principal axis in mm."""
    rows, columns = np.nonzero(weight)
    weights = weight[rows, columns]
    centre = np.average([columns, rows], axis=1, weights=weights)
    covariance = np.cov(np.stack([columns * spacing[1], rows * spacing[0]]), aweights=weights)
    along = np.linalg.eigh(covariance)[1][:, -1] / (spacing[1], spacing[0])
    return (float(centre[0]), float(centre[1])), (float(centre[0] + along[0]), float(centre[1] + along[1]))


def _caption(item: ShownSlice) -> str:
    parts = [f"slice {item.index}"]
    if item.location is not None:
        predicted = "" if item.predicted_location is None else f" → {item.predicted_location:.2f}"
        parts.append(f"location {item.location:.2f}{predicted}")
    return ", ".join(parts)


def _page(study: ShownStudy, uri: str) -> str:
    environment = Environment(
        loader=PackageLoader("ctnet_nnunet.inspection"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = lambda value: "–" if value is None or math.isnan(value) else f"{value:.2f}"
    return environment.get_template("planes.html").render(style=style_sheet(), study=study, picture=uri)
