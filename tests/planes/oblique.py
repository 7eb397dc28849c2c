"""Random oblique geometry for the tests: rotations, planes, stacks; nothing lies along an axis, no pixel is square."""

from __future__ import annotations

import numpy as np

from ctnet_nnunet.planes.geometry import Plane, plane_from_dicom


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random rotation matrix (3, 3)."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def plane(rng: np.random.Generator, axes: np.ndarray | None = None) -> Plane:
    """A plane somewhere within 80 mm of the origin, its pixels 0.6 to 2 mm, rows and columns apart differently."""
    axes = rotation(rng) if axes is None else axes
    spacing = rng.uniform(0.6, 2.0, 2)
    return plane_from_dicom(rng.uniform(-80, 80, 3), [*axes[:, 0], *axes[:, 1]], spacing, 5.0)


def moved(item: Plane, turn: np.ndarray, shift: np.ndarray) -> Plane:
    """The plane under a rigid motion of the patient."""
    x, y = turn @ np.array(item.columns), turn @ np.array(item.rows)
    return plane_from_dicom(turn @ np.array(item.position) + shift, [*x, *y], item.spacing, item.thickness)
