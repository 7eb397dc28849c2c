"""Loss curves of the trainings of a run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctnet_nnunet.evaluation.pictures import PICTURE_WIDTH_INCH
from ctnet_nnunet.evaluation.training_history import History

INK, TRAIN, VALIDATION = "#333333", "#1F5A8A", "#C65D00"
COLUMNS = 3
SHADES = ("#1F5A8A", "#C65D00", "#3C7D3C", "#8A4F9E", "#7A6A1F", "#555555")


def loss_figure(histories: Sequence[History]) -> Figure:
    """One panel a training: training and validation loss over epochs. Scales differ between panels."""
    rows = -(-len(histories) // COLUMNS)
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, 1.9 * rows + 0.2), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, history in zip(panels, histories, strict=False):
        _draw_losses(panel, history)
    for panel in panels[len(histories) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7, frameon=False, loc="upper right")
    return figure


def _draw_losses(panel: Axes, history: History) -> None:
    _line(panel, history.train_loss, TRAIN, "training")
    _line(panel, history.validation_loss, VALIDATION, "validation")
    panel.set_title(history.name, fontsize=8, color=INK, loc="left")
    panel.set_xlabel("epoch", fontsize=7, color=INK)
    panel.set_ylabel("loss", fontsize=7, color=INK)
    sober(panel)


def score_figure(histories: Sequence[History], label: str) -> Figure:
    """The score of several trainings over epochs in one panel, each line named at its end."""
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, 2.4), layout="constrained", facecolor="white")
    panel = figure.subplots()
    for number, history in enumerate(histories):
        _line(panel, history.score, SHADES[number % len(SHADES)], history.name)
    panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panel.set_xlabel("epoch", fontsize=7, color=INK)
    panel.set_ylabel(label, fontsize=7, color=INK)
    sober(panel)
    return figure


def _line(panel: Axes, values: Sequence[float], colour: str, label: str) -> None:
    marker = "o" if len(values) < 3 else ""
    panel.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.3, label=label, marker=marker, markersize=3)


def sober(panel: Axes) -> None:
    """Thin axes, small ticks, no frame: the look of all curves."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#999999")
    panel.tick_params(labelsize=7, colors=INK, length=2.5, color="#999999")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.grid(axis="y", color="#E4E4E4", linewidth=0.6)
