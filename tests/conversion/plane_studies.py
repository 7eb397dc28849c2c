"""Studies of imaging planes for the tests: three oblique views of one patient, as DICOM, and a request for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ctnet_nnunet.conversion.planes.convert import PlanesRequest
from ctnet_nnunet.conversion.planes.write import Roles
from tests.conversion.fake_dicom import write_series
from tests.planes.oblique import rotation

ROLES = ("sax=SAX", "2ch=2CH", "4ch=4CH")


def stack(rng: np.random.Generator, size: tuple[int, int, int], axes: np.ndarray) -> sitk.Image:
    """An oblique stack of anisotropic pixels with values far above 255."""
    image = sitk.GetImageFromArray(rng.integers(0, 3000, size[::-1]).astype(np.int16))
    image.SetSpacing((1.1, 1.7, 8.0))
    image.SetOrigin(rng.uniform(-90, 90, 3).tolist())
    image.SetDirection(axes.ravel().tolist())
    return image


def views(seed: int = 0) -> dict[str, sitk.Image]:
    """Three views of one patient that cut each other at right angles."""
    rng = np.random.default_rng(seed)
    axes = rotation(rng)
    turned = {"sax": axes, "2ch": axes[:, [1, 2, 0]], "4ch": axes[:, [2, 0, 1]]}
    sizes = {"sax": (12, 10, 5), "2ch": (11, 9, 1), "4ch": (9, 12, 1)}
    return {name: stack(rng, sizes[name], turned[name]) for name in turned}


def write_dicom(folder: Path, images: dict[str, sitk.Image], **tags: Any) -> None:
    for number, (name, image) in enumerate(images.items()):
        write_series(image, folder / name, number, SeriesDescription=name, FrameOfReferenceUID="1.2.3", **tags)


def request(out: Path, **changes: Any) -> PlanesRequest:
    return replace(PlanesRequest(out / "Dataset501_Heart", Roles(), ROLES), **changes)
