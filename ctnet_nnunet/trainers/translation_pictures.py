"""What the generators make of a patch, as a picture: real, translated, and translated back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

INCH = 1.7
COLUMNS = 3


def write_translations(
    file: Path, a: Tensor, b: Tensor, made: Mapping[str, Tensor], names: Sequence[Sequence[str]]
) -> None:
    """Write a PNG: for each sequence of a row its middle slice in three columns.

    Pair a's rows hold real a, and beside it what was made of it, pair b; then a again, made of that. Pair b's likewise.
    Each column of a sequence has the grey scale of that sequence's real image.

    Args:
        file: To write; its folder is made.
        a, b: The real pairs (1, sequences, *patch).
        made: From :class:`~ctnet_nnunet.cross_modality.cmft.Translators`.
        names: Of the sequences of both pairs.
    """
    rows = [
        *_rows(a, b, made["fake_b"], made["cycled_a"], names[0], names[1]),
        *_rows(b, a, made["fake_a"], made["cycled_b"], names[1], names[0]),
    ]
    figure = Figure(figsize=(COLUMNS * INCH, len(rows) * (INCH + 0.4)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for place, (title, image, window) in zip(line, row, strict=True):
            place.imshow(image, cmap="gray", vmin=window[0], vmax=window[1])
            place.set_title(title, fontsize=7)
            place.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(file)


Tile = tuple[str, np.ndarray, tuple[float, float]]


def _rows(
    real: Tensor, other: Tensor, fake: Tensor, cycled: Tensor, names: Sequence[str], others: Sequence[str]
) -> list[list[Tile]]:
    """One row for each sequence; beside the i-th is the other pair's i-th, or its last where it has fewer."""
    rows = []
    for number, name in enumerate(names):
        made = min(number, len(others) - 1)
        own, theirs = _window(real[0, number]), _window(other[0, made])
        rows.append([
            (f"{name}\nreal", _slice(real[0, number]), own),
            (f"{others[made]}\nmade of {', '.join(names)}", _slice(fake[0, made]), theirs),
            (f"{name}\nmade back", _slice(cycled[0, number]), own),
        ])  # fmt: skip
    return rows


def _slice(image: Tensor) -> np.ndarray:
    """The middle slice of (X, Y, Z), or the image itself in 2d."""
    array: np.ndarray = image.float().numpy()
    return array[len(array) // 2] if array.ndim == 3 else array


def _window(image: Tensor) -> tuple[float, float]:
    low, high = np.percentile(_slice(image), (1, 99))
    return float(low), float(max(high, low + 1e-3))
