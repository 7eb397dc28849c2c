"""A scan's volumes among those of the training cases: a row of dots for each structure, a diamond for the scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctnet_nnunet.evaluation.metrics import Structure
from ctnet_nnunet.evaluation.pictures import PICTURE_WIDTH_INCH, colour
from ctnet_nnunet.evaluation.plots import sober
from ctnet_nnunet.evaluation.reference import Reference

_ROW_INCH = 0.3


def volume_figure(
    structures: Sequence[Structure], measured: Mapping[str, float], reference: Reference
) -> Figure | None:
    """Each volume as a ratio to the training cases' median, so that large and small structures share one axis.

    Args:
        measured: Structure → ml in this scan.

    Returns:
        None where no structure has enough training cases.
    """
    shown = [structure for structure in structures if reference.volumes(structure.name)]
    if not shown:
        return None
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, 0.8 + _ROW_INCH * len(shown)), layout="constrained")
    panel = figure.subplots()
    for row, structure in enumerate(shown):
        known = np.array(reference.volumes(structure.name))
        middle = float(np.median(known))
        panel.scatter(known / middle, np.full(len(known), row), s=14, color="#9aa1a7", alpha=0.6, linewidths=0)
        panel.plot(np.percentile(known, (5, 95)) / middle, (row, row), color="#5b6268", linewidth=1.2, zorder=1)
        fill = colour(structures, structure)
        panel.scatter(
            measured[structure.name] / middle, row, s=52, marker="D", color=fill, edgecolors="black", zorder=3
        )
    panel.set_yticks(range(len(shown)), [structure.name for structure in shown])
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.axvline(1.0, color="#d5d9dd", linewidth=0.8, zorder=0)
    panel.set_xlabel("Volume / median of the training cases; line: 5th to 95th percentile", fontsize=8)
    sober(panel)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7))  # a ratio; the curves' axis is in whole epochs
    return figure
