"""Tiny scans with a known geometry, and the conversion of a listing into a test's own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Listing
from ctnet_nnunet.conversion.convert import Report, convert
from ctnet_nnunet.conversion.settings import Settings

SHARED = Path(os.environ.get("CTNET_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
"""Real scans, which do not come with the project; tests that want them skip without them."""

SIZE = (7, 6, 5)
"""Voxels along x, y, z: all different, so that a swapped axis shows."""


def scan(seed: int = 0, size: tuple[int, ...] = SIZE) -> sitk.Image:
    """Noise, float32, 1 × 1.5 × 2 mm, axes LPS, away from the origin."""
    array = np.random.default_rng(seed).normal(100, 20, size[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.5, 2.0)[: len(size)])
    image.SetOrigin((-11.0, 22.0, 33.0)[: len(size)])
    return image


def label_like(image: sitk.Image, numbers: tuple[int, ...] = (1, 2), dtype: Any = np.uint8) -> sitk.Image:
    """A label map on the image's grid: one slab along x for each number, background elsewhere."""
    array = np.zeros(image.GetSize()[::-1], dtype)
    for index, number in enumerate(numbers):
        array[..., index + 1] = number
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return label


def write(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), path.name.endswith(".gz"))
    return path


def pairs(root: Path, count: int = 3, **label: Any) -> tuple[Path, Path]:
    """``root/images/case_0.nii.gz`` … and ``root/labels`` beside it."""
    for index in range(count):
        image = scan(index)
        write(image, root / "images" / f"case_{index}.nii.gz")
        write(label_like(image, **label), root / "labels" / f"case_{index}.nii.gz")
    return root / "images", root / "labels"


def run(listing: Listing, out: Path, **options: Any) -> Report:
    """Convert in this process."""
    return convert(listing, Settings(**{"dataset_id": 501, "name": "Test", "out": out, "processes": 0, **options}))


def values_at(image: sitk.Image, points: list[tuple[float, ...]]) -> list[float]:
    """Values at physical points (mm, LPS); outside of the grid is an error."""
    return [float(image.GetPixel(image.TransformPhysicalPointToIndex(point))) for point in points]


def all_points(image: sitk.Image) -> list[tuple[float, ...]]:
    """The physical point of every voxel."""
    indices = np.ndindex(*image.GetSize())
    return [image.TransformIndexToPhysicalPoint(tuple(int(i) for i in index)) for index in indices]


def files_under(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
