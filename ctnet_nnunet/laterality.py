"""Which labels are left and right of each other, and which array axis runs from left to right.

Mirroring across that axis turns a left structure into a right one. Where labels pair up, training swaps them with the
mirror; where a sided label has no partner, or the axis is unknown, mirroring there is off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEFT = {"left", "l", "lh", "lt", "sin"}
RIGHT = {"right", "r", "rh", "rt", "dex"}
NO_SIDE = {"cleft", "bright"}
"""Words that end in a side and have none."""
CLEAR_DIRECTION = 0.75
"""Cosine from which on one axis is left-right and no other can be: those of two axes at 45° are 0.71."""


@dataclass(frozen=True)
class SidedLabels:
    """``pairs`` of integer labels (left, right), and the names of sided labels without a partner, ``unpaired``."""

    pairs: tuple[tuple[int, int], ...]
    unpaired: tuple[str, ...]

    @property
    def any(self) -> bool:
        return bool(self.pairs or self.unpaired)


def sided_labels(labels: Mapping[str, int | Sequence[int]]) -> SidedLabels:
    """Pair the labels of a dataset.json by their names.

    A name is sided if one of its words is left/right, l/r, lh/rh, lt/rt or sin/dex (``Left-Thalamus``,
    ``thalamus_L``, ``thalamusRight``, ``leftthalamus``). Two names pair up when they differ in that word alone, and
    nothing else does. Regions (lists of labels) are made of labels that are named themselves, or not at all, so a
    sided region of single labels counts.
    """
    found: dict[tuple[str, ...], list[tuple[str, str, int]]] = {}
    for name, value in labels.items():
        side, rest = split_side(name)
        values = [value] if isinstance(value, int) else list(value)
        if side is not None and len(values) == 1:
            found.setdefault(rest, []).append((side, name, int(values[0])))
        elif side is not None:
            found.setdefault((name,), []).append((side, name, -1))
    pairs, unpaired = [], []
    for sides in found.values():
        if sorted(side for side, _, _ in sides) == ["left", "right"]:
            (_, _, left), (_, _, right) = sorted(sides)
            pairs.append((left, right))
        else:
            unpaired += [name for _, name, _ in sides]
    return SidedLabels(tuple(sorted(pairs)), tuple(sorted(unpaired)))


def split_side(name: str) -> tuple[str | None, tuple[str, ...]]:
    """A name's side, and its other words in order, with a mark (``*``) where the side stood.

    >>> split_side("Left-Globus-Pallidus")
    ('left', ('*', 'globus', 'pallidus'))
    """
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    words = [part for word in found for part in _parts(word.lower())]
    for index, word in enumerate(words):
        side = "left" if word in LEFT else "right" if word in RIGHT else None
        if side is not None:
            return side, (*words[:index], "*", *words[index + 1 :])
    return None, tuple(words)


def _parts(word: str) -> list[str]:
    """``leftthalamus`` → left, thalamus; other words as they are."""
    if word in NO_SIDE:
        return [word]
    return [part for part in re.split(r"^(left|right)|(left|right)$", word) if part]


def left_right_axis(direction: Sequence[float]) -> int | None:
    """The array axis (z, y, x order) along which an image runs from left to right.

    Args:
        direction: The row-major direction cosines of a SimpleITK image, 9 values: column i is where index axis i
            points in LPS.

    Returns:
        The array axis whose direction is closest to left-right, or None for a 2d image or one so oblique that two axes
        come close.
    """
    if len(direction) != 9:
        return None
    along_x = np.abs(np.asarray(direction, dtype=float).reshape(3, 3)[0])
    best = int(np.argmax(along_x))
    if along_x[best] < CLEAR_DIRECTION:
        return None
    return 2 - best


def swap_table(pairs: Sequence[tuple[int, int]], highest: int) -> np.ndarray:
    """A look-up table over labels 0..highest that exchanges each pair."""
    table = np.arange(highest + 1)
    for left, right in pairs:
        table[left], table[right] = right, left
    return table
