"""A DICOM-SEG before others: David Clunie's validator has nothing against it, highdicom reads the same labels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.evaluation.metrics import structures_from_labels
from ctnet_nnunet.inference.inputs import Wanted, find_cases
from ctnet_nnunet.inference.segmentation_object import Algorithm, write_segmentation
from tests.conversion.test_orientations import directions
from tests.inference.test_sides import LABELS, compared, labels_at, phantom, study


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[sitk.Image, Path]:
    """An oblique label map, and its segmentation of a series of complete headers."""
    root = tmp_path_factory.mktemp("segmentation")
    image = phantom(3, directions()["oblique05"])
    study(root / "in", image, PatientName="Doe^Jane", PatientID="7", StudyID="1", StudyDate="20200229",
          StudyTime="120000", PatientBirthDate="19500101", PatientSex="F", Manufacturer="maker")  # fmt: skip
    found = find_cases(root / "in", Wanted(["image"], ".nii.gz"), root).cases[0]
    structures = structures_from_labels({"background": 0, **{name: n for n, name in enumerate(LABELS, start=1)}})
    algorithm = Algorithm("nnUNetTrainerCTNet", {"dataset": "d"}, "0" * 64)
    write_segmentation(image, found.images[0], (), structures, algorithm, root / "seg.dcm")
    return image, root / "seg.dcm"


def test_highdicom_reads_the_same_labels(written: tuple[sitk.Image, Path]) -> None:
    image, file = written
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    found = {}
    for index in np.argwhere(volume.array > 0):
        place = volume.affine @ [*index, 1.0]
        found[tuple(float(v) for v in np.round(place[:3], 2) + 0.0)] = int(volume.array[tuple(index)])
    assert compared(labels_at(image), found)


def test_the_validator_finds_no_error(written: tuple[sitk.Image, Path]) -> None:
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("no dciodvfy here (Debian's dicom3tools): the segmentation was written, not validated")
    said = subprocess.run([validator, str(written[1])], capture_output=True, text=True, timeout=60, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert "Segmentation" in lines, "it saw what the file is"
    assert [line for line in lines if line.startswith(("Error", "Abort"))] == []
