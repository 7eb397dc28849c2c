"""What a source holds, before any voxel is read: its cases, their files, and what cannot be one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctnet_nnunet.conversion.labels import LabelMap

TRAINING, UNLABELLED, TEST = "Tr", "Un", "Ts"


@dataclass(frozen=True)
class Image:
    """One channel of a case, or its label map.

    ``path`` is a file, or the folder of a DICOM series with its ``slices`` in order. ``volume`` is an index along the
    fourth axis of a 4D file or time series.
    """

    path: Path
    volume: int | None = None
    slices: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}" if self.volume is None else f"{self.path} (volume {self.volume})"


@dataclass(frozen=True)
class Case:
    """One scan with all its channels; without ``label`` it goes to imagesUn, or where ``part`` says.

    ``patient`` groups the folds; an empty one is a patient of its own. ``missing`` are channels that it lacks where the
    source was told that it may; ``images`` are the others.
    """

    name: str
    images: tuple[Image, ...]
    label: Image | None = None
    patient: str = ""
    site: str = ""
    part: str = ""
    missing: tuple[int, ...] = ()

    @property
    def destination(self) -> str:
        """Tr, Un or Ts, as in imagesTr."""
        return self.part or (TRAINING if self.label else UNLABELLED)


@dataclass
class Listing:
    """A source as found. ``root`` shortens the names of its files; ``refused`` maps a case or file to the reason.

    ``label_map`` is what the source itself knows about its labels; None: taken from the values that occur.
    ``regions`` are overlapping regions, each a list of label names, in the order in which nnU-Net paints them.
    """

    root: Path
    channels: list[str]
    cases: list[Case] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    label_map: LabelMap | None = None
    regions: dict[str, list[str]] | None = None


def case_name(text: str) -> str:
    """``text`` as a case name that nnU-Net and every file system take.

    >>> case_name("sub 01/ses#2")
    'sub_01_ses_2'
    >>> case_name("knee_seg")
    'knee-seg'
    """
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.")
    # nnU-Net takes a file that ends in _seg for a segmentation.
    return name[:-4] + "-seg" if name.endswith("_seg") else name


def relative(path: Path, root: Path) -> str:
    """The path below ``root`` with forward slashes; as it is where it lies elsewhere."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return path.as_posix()


def refuse_duplicates(listing: Listing) -> None:
    """Move cases that share a name from ``cases`` to ``refused``; upper and lower case count as the same."""
    counts = Counter(case.name.lower() for case in listing.cases)
    kept = []
    for case in listing.cases:
        if case.name and counts[case.name.lower()] == 1:
            kept.append(case)
            continue
        file = relative(case.images[0].path, listing.root)
        same = [
            relative(other.images[0].path, listing.root)
            for other in listing.cases
            if other is not case and other.name.lower() == case.name.lower()
        ]
        reason = f"becomes the case {case.name!r} as {', '.join(same)} does" if same else "leaves no case name"
        listing.refused[file] = f"{reason}; rename one of the files or choose another pattern"
    listing.cases = kept
