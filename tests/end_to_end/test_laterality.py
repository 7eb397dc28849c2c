"""A mirrored scan gives mirrored and swapped labels: training and test-time augmentation never mix up the sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.conftest import NnunetEnv
from tests.end_to_end.commands import run_warm
from tests.end_to_end.tiny import Tiny, prepare
from tests.synthetic import write_image

LONG_ENOUGH = ("epochs=8", "iterations=25", "learning_rate=0.003", "val_iterations=2", "features_base=8")
LEFT, RIGHT = 1, 2
LEFT_RIGHT_AXIS = 2  # of arrays (z, y, x) under an identity direction, and of the patch


@pytest.fixture(scope="module")
def trained(nnunet_env: NnunetEnv) -> Tiny:
    """A network that tells "left blob" from "right blob", which differ in their side alone."""
    tiny = prepare(nnunet_env, 610, "Sides", unlabelled=0, patch_size=(16, 28, 24), more=LONG_ENOUGH)
    done = run_warm(nnunet_env, *tiny.train("all")).succeeded()
    assert "training mirrors it and swaps 1 pairs of labels" in done.stdout
    return tiny


def test_a_mirrored_scan_gives_swapped_labels(trained: Tiny, tmp_path: Path) -> None:
    (scan,) = (trained.raw / "imagesTs").glob("*.nii.gz")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(scan)))
    write_image(tmp_path / "scans" / "asis_0000.nii.gz", image)
    write_image(tmp_path / "scans" / "mirrored_0000.nii.gz", np.flip(image, LEFT_RIGHT_AXIS).copy())
    run_warm(trained.env, *trained.predict(tmp_path / "scans", tmp_path / "out", ["all"])).succeeded()
    asis, mirrored = (_read(tmp_path / "out" / f"{name}.nii.gz") for name in ("asis", "mirrored"))
    # The blobs lie where tests/synthetic.py puts them: +x is the patient's left.
    middle = image.shape[LEFT_RIGHT_AXIS] // 2
    assert (asis[..., middle:] == LEFT).sum() > 50
    assert (asis[..., :middle] == RIGHT).sum() > 50
    expected = np.flip(np.array([0, RIGHT, LEFT])[asis], LEFT_RIGHT_AXIS)
    for label in (LEFT, RIGHT):
        assert dice(mirrored == label, expected == label) > 0.8
        assert dice(mirrored == label, np.flip(asis, LEFT_RIGHT_AXIS) == label) < 0.1  # not: labels that stayed


def test_test_time_augmentation_leaves_the_left_right_axis_out(trained: Tiny) -> None:
    checkpoint = torch.load(trained.fold("all") / "checkpoint_final.pth", weights_only=True)
    assert tuple(checkpoint["inference_allowed_mirroring_axes"]) == (0, 1)


def _read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
