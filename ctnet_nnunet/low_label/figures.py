"""Learning curves and the box plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctnet_nnunet.evaluation.pictures import PICTURE_WIDTH_INCH
from ctnet_nnunet.evaluation.plots import INK, sober
from ctnet_nnunet.evaluation.training_history import read_history
from ctnet_nnunet.low_label.scores import Row
from ctnet_nnunet.low_label.trainings import Training

# Eleven hues that differ in lightness too; the arms keep theirs from figure to figure.
COLOURS = (
    "#7F7F7F", "#1F5A8A", "#C65D00", "#3C7D3C", "#8A4F9E", "#B8860B",
    "#00868B", "#A0303F", "#5B6ABF", "#6B8E23", "#111111",
)  # fmt: skip
QUARTERS = (0.25, 0.5, 0.75, 1.0)
SMOOTH_SHARE = 0.1

Curves = dict[tuple[str, int], list[tuple[float, ...]]]
"""(arm, labels) → the Dice of each draw, epoch by epoch."""


def read_curves(trainings: Sequence[Training], most_labels: int) -> Curves:
    """nnU-Net's Dice on patches of the test cases, of every finished supervised training; the ceiling's number of
    labels is ``most_labels``.

    It is drawn and printed, and nothing is chosen by it.
    """
    curves: Curves = {}
    for training in trainings:
        history = read_history(training.folder, training.title) if training.arm and training.finished else None
        if training.arm is not None and history is not None and history.score:
            labels = training.draw.labels if training.draw else most_labels
            curves.setdefault((training.arm.name, labels), []).append(history.score)
    return curves


def at_quarters(curves: Curves) -> dict[tuple[str, int], list[float]]:
    """Mean Dice over draws after a quarter, half, three quarters and all of the iterations.

    Each is the mean over the tenth of the training that ends there, because single epochs see few patches.
    """
    found = {}
    for key, draws in curves.items():
        mean = _mean(draws)
        width = max(1, round(SMOOTH_SHARE * len(mean)))
        ends = [max(1, round(share * len(mean))) for share in QUARTERS]
        found[key] = [_plain_mean(mean[max(0, end - width) : end]) for end in ends]
    return found


def curve_figure(curves: Curves, labels: int, iterations: int, colours: Mapping[str, str]) -> Figure:
    """Dice over iterations, one line an arm; the band goes from the least to the greatest draw."""
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, 3.2), layout="constrained", facecolor="white")
    panel = figure.subplots()
    for (arm, count), draws in curves.items():
        if count != labels:
            continue
        smooth = np.array([_smoothed(draw) for draw in _same_length(draws)])
        steps = np.linspace(iterations / smooth.shape[1], iterations, smooth.shape[1])
        panel.plot(steps, smooth.mean(axis=0), color=colours[arm], linewidth=1.3, label=arm)
        if len(smooth) > 1:
            panel.fill_between(
                steps, smooth.min(axis=0), smooth.max(axis=0), color=colours[arm], alpha=0.1, linewidth=0
            )
    panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panel.set_xlabel("iteration", fontsize=7, color=INK)
    panel.set_ylabel("Dice on patches", fontsize=7, color=INK)
    panel.set_ylim(0, 1)
    sober(panel)
    return figure


def box_figure(rows: Sequence[Row], colours: Mapping[str, str]) -> Figure:
    """Mean Dice of every draw and test case, a box for each arm, a panel for each number of labels."""
    counts = sorted({row.labels for row in rows})
    arms_of = {count: list(dict.fromkeys(row.arm for row in rows if row.labels == count)) for count in counts}
    heights = [0.5 + 0.26 * len(arms) for arms in arms_of.values()]
    figure = Figure(figsize=(PICTURE_WIDTH_INCH, sum(heights) + 0.4), layout="constrained", facecolor="white")
    panels = figure.subplots(len(counts), 1, squeeze=False, sharex=True, height_ratios=heights).ravel()
    for panel, count in zip(panels, counts, strict=True):
        _draw_boxes(panel, [row for row in rows if row.labels == count], arms_of[count], colours)
        panel.set_title(f"{count} label{'s' if count != 1 else ''}", fontsize=8, color=INK, loc="left")
    panels[-1].set_xlabel("mean Dice of a test case", fontsize=7, color=INK)
    return figure


def colours_of(arms: Sequence[str]) -> dict[str, str]:
    """A colour for each arm."""
    return {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}


def _draw_boxes(panel: Axes, rows: Sequence[Row], arms: Sequence[str], colours: Mapping[str, str]) -> None:
    values = []
    for arm in arms:
        own = [row for row in rows if row.arm == arm]
        keys = dict.fromkeys((row.draw, row.case) for row in own)
        means = [_plain_mean([row.dice for row in own if (row.draw, row.case) == key]) for key in keys]
        values.append([value for value in means if not math.isnan(value)])
    boxes = panel.boxplot(values, orientation="horizontal", widths=0.6, patch_artist=True, showfliers=False)
    for box, arm in zip(boxes["boxes"], arms, strict=True):
        box.set(facecolor=f"{colours[arm]}40", edgecolor=colours[arm], linewidth=1)
    for part in ("whiskers", "caps"):
        for index, line in enumerate(boxes[part]):
            line.set(color=colours[arms[index // 2]], linewidth=1)
    for line, arm in zip(boxes["medians"], arms, strict=True):
        line.set(color=colours[arm], linewidth=2)
    for position, (arm, dots) in enumerate(zip(arms, values, strict=True), start=1):
        # Spread evenly, not at random: the same figures give the same picture.
        offsets = [0.18 * ((index % 5) - 2) / 2 for index in range(len(dots))]
        panel.plot(dots, [position + offset for offset in offsets], "o", color=colours[arm], markersize=2.2, alpha=0.7)
    sober(panel)
    panel.set_yticks(range(1, len(arms) + 1), arms)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.grid(axis="x", color="#E4E4E4", linewidth=0.6)


def _same_length(draws: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    shortest = min(len(draw) for draw in draws)
    return [draw[:shortest] for draw in draws]


def _mean(draws: Sequence[tuple[float, ...]]) -> list[float]:
    return [_plain_mean(list(values)) for values in zip(*_same_length(draws), strict=True)]


def _smoothed(values: Sequence[float]) -> list[float]:
    width = max(1, round(SMOOTH_SHARE * len(values)))
    return [_plain_mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def _plain_mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
