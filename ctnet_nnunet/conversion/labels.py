"""From the numbers in a team's label maps to nnU-Net's consecutive labels, and the way back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctnet_nnunet.errors import DataError

INTEGER_TOLERANCE = 1e-3
IGNORE = "ignore"
_BACKGROUND_NAMES = {"", "background"}
_LARGEST_RANGE = 1 << 24


@dataclass(frozen=True)
class LabelMap:
    """``targets`` maps a number in the source to a label 0..n; ``names[i]`` is the name of label ``i + 1``.

    Several numbers may become one label. ``others_are_background`` says what a number does that is not listed: it
    becomes background, or the case is refused.
    """

    names: tuple[str, ...]
    targets: Mapping[int, int]
    others_are_background: bool = False

    @property
    def labels(self) -> dict[str, int]:
        """The ``labels`` of dataset.json."""
        return {"background": 0, **{name: index for index, name in enumerate(self.names, start=1)}}

    def inverse(self) -> dict[str, list[int]]:
        """Label → the numbers of the source that became it, for JSON."""
        return {
            str(label): sorted(number for number, target in self.targets.items() if target == label)
            for label in range(len(self.names) + 1)
        }

    def apply(self, values: NDArray[np.integer[Any]], name: str) -> NDArray[Any]:
        """The label map (any shape) with consecutive labels, uint8 or uint16.

        Raises:
            DataError: a number that the map does not list; ``name`` says where.
        """
        if not values.size:
            return values.astype(np.uint8)
        low, counts = _histogram(values, name)
        table = np.zeros(counts.size, np.uint8 if len(self.names) < 256 else np.uint16)
        for index in np.flatnonzero(counts):
            number = int(index) + low
            if number not in self.targets and number != 0 and not self.others_are_background:
                raise DataError(
                    f"{name}: holds the number {number} ({counts[index]} voxels), which the label map does not list; "
                    f"add it with a name, or with the name background; listed: {_short(sorted(self.targets))}"
                )
            table[index] = self.targets.get(number, 0)
        return table[_from_zero(values, low)]


def make_label_map(rows: Iterable[tuple[int, str]], others_are_background: bool = False) -> LabelMap:
    """A map from (number, name) in the order in which the labels are to be numbered.

    Numbers with the same name become one label; ``background`` or an empty name is 0; ``ignore`` comes last, where
    nnU-Net wants it.

    Raises:
        DataError: a number with two names; no label but background.
    """
    name_of: dict[int, str] = {}
    for number, name in rows:
        if name_of.get(number, name) != name:
            raise DataError(f"label map: {number} is both {name_of[number]!r} and {name!r}; give each number one name")
        name_of[number] = name
    found = dict.fromkeys(name for name in name_of.values() if name.lower() not in _BACKGROUND_NAMES)
    names = tuple(sorted(found, key=lambda name: name == IGNORE))
    if not names:
        raise DataError("label map: names no label besides background; list VALUE,NAME pairs")
    targets = {number: names.index(name) + 1 if name in found else 0 for number, name in name_of.items()}
    return LabelMap(names, targets, others_are_background)


def label_map_from_values(values: Iterable[int], names: Mapping[int, str] | None = None) -> LabelMap:
    """Consecutive labels for the numbers that occur, smallest first; ``label_<number>`` where no name is known."""
    known = names or {}
    return make_label_map((number, known.get(number, f"label_{number}")) for number in sorted(set(values) - {0}))


def read_label_map(text: str, others_are_background: bool = False) -> LabelMap:
    """A map from a CSV file, from the ``labels`` of a dataset.json, or from ``VALUE=NAME,VALUE=NAME``.

    The CSV file has two columns, number and name, with or without a heading line.

    Raises:
        DataError: neither of the two; a value that is no integer.
    """
    path = Path(text)
    if path.name.lower().endswith(".json"):
        return make_label_map(_json_rows(path), others_are_background)
    rows = _table_rows(path) if "=" not in text or path.is_file() else _text_rows(text)
    pairs = []
    for where, number, name in rows:
        try:
            pairs.append((int(number), name.strip()))
        except ValueError:
            raise DataError(f"{where}: {number!r} is no integer; wanted a number and a name") from None
    return make_label_map(pairs, others_are_background)


def _json_rows(path: Path) -> list[tuple[int, str]]:
    """The labels of a dataset.json: ``{"name": 1}`` as nnU-Net writes them, ``{"1": "name"}`` as the Decathlon does."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = [(value, key) if isinstance(value, int) else (int(key), str(value)) for key, value in labels.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--label-map {path}: holds no usable labels ({type(error).__name__}: {error})") from None
    return sorted(pairs)


def _text_rows(text: str) -> list[tuple[str, str, str]]:
    rows = []
    for part in text.split(","):
        number, equals, name = part.partition("=")
        if not equals:
            raise DataError(f"--label-map {text!r}: {part!r} is not VALUE=NAME")
        rows.append(("--label-map", number.strip(), name))
    return rows


def _table_rows(path: Path) -> list[tuple[str, str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--label-map {path}: cannot be read ({error}); give a CSV file or VALUE=NAME,…") from None
    separator = "\t" if any("\t" in line for line in lines) else ";" if any(";" in line for line in lines) else ","
    rows = list[tuple[str, str, str]]()
    for number, row in enumerate(csv.reader(lines, delimiter=separator), start=1):
        if not row or not "".join(row).strip() or row[0].lstrip().startswith("#"):
            continue
        if len(row) < 2:
            raise DataError(f"{path}: line {number} has {len(row)} column, wanted a number and a name")
        if not rows and not _is_integer(row[0]):
            continue  # the heading
        rows.append((f"{path}: line {number}", row[0].strip(), row[1]))
    return rows


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def as_integers(array: NDArray[Any], name: str) -> tuple[NDArray[np.integer[Any]], bool]:
    """The voxels of a label map as integers, and whether any had to be rounded.

    Raises:
        DataError: fractions, NaN or numbers that no label map has.
    """
    if np.issubdtype(array.dtype, np.integer):
        return array, False
    rounded = np.rint(array)
    with np.errstate(invalid="ignore"):
        off = np.abs(array - rounded)
    if not np.isfinite(off).all() or off.max(initial=0) > INTEGER_TOLERANCE:
        worst = array.ravel()[int(np.nanargmax(np.where(np.isfinite(off), off, np.inf)))]
        raise DataError(
            f"{name}: holds fractions such as {worst:g}; give the label map as it was drawn, "
            "or resampled with nearest neighbour"
        )
    if np.abs(rounded).max(initial=0) > _LARGEST_RANGE:
        raise DataError(f"{name}: holds {np.abs(rounded).max():g}, which is no label; give a label map")
    return rounded.astype(np.int32), bool(off.any())


def numbers_in(values: NDArray[np.integer[Any]], name: str) -> dict[int, int]:
    """Number → how many voxels have it.

    Raises:
        DataError: numbers so far apart that this is no label map.
    """
    low, counts = _histogram(values, name)
    return {int(index) + low: int(counts[index]) for index in np.flatnonzero(counts)}


def _histogram(values: NDArray[np.integer[Any]], name: str) -> tuple[int, NDArray[np.intp]]:
    """The smallest number, at most 0, and the counts from there on: much faster than sorting a volume."""
    low, high = min(int(values.min()), 0), int(values.max())
    if high - low > _LARGEST_RANGE:
        raise DataError(f"{name}: holds numbers from {low} to {high}; this is no label map")
    return low, np.bincount(_from_zero(values, low).ravel())


def _from_zero(values: NDArray[np.integer[Any]], low: int) -> NDArray[np.integer[Any]]:
    return values - low if low else values


def _short(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")
