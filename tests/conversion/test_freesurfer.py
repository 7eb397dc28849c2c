"""The freesurfer source, on tiny subjects in FreeSurfer's own format and on real label maps."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Image
from ctnet_nnunet.conversion.read import read_image
from ctnet_nnunet.conversion.sources.freesurfer import choose, list_freesurfer
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.laterality import sided_labels
from tests.conversion.fakes import SHARED, run

NAMES = Path(__file__).resolve().parents[2] / "dataset_conversion/freesurfer_aseg.csv"
# FreeSurfer's conformed orientation (LIA), as its affine.
AFFINE = np.array([[-1.0, 0, 0, 12.0], [0, 0, 1.0, -9.0], [0, -1.0, 0, 15.0], [0, 0, 0, 1.0]])
SHAPE = (9, 8, 7)


def fake_subject(folder: Path, seed: int = 0, labelled: bool = True) -> np.ndarray:
    """mri/T1.mgz and mri/aseg.mgz with every number of the aseg; returns the label array (x, y, z)."""
    rng = np.random.default_rng(seed)
    (folder / "mri").mkdir(parents=True)
    nibabel.save(nibabel.MGHImage(rng.integers(0, 255, SHAPE).astype(np.uint8), AFFINE), folder / "mri/T1.mgz")
    numbers = np.array([0, 2, 10, 11, 12, 13, 17, 41, 49, 50, 51, 52, 53, 251], np.int32)
    labels = numbers[rng.integers(0, len(numbers), SHAPE)]
    if labelled:
        nibabel.save(nibabel.MGHImage(labels, AFFINE), folder / "mri/aseg.mgz")
    return labels


def test_the_eight_deep_gray_labels(tmp_path: Path) -> None:
    truth = {name: fake_subject(tmp_path / "in" / name, seed) for seed, name in enumerate(("anna", "bert"))}
    fake_subject(tmp_path / "in/carl", 3, labelled=False)
    (tmp_path / "in/fsaverage_without_mri").mkdir()
    report = run(list_freesurfer(tmp_path / "in", ["T1.mgz"], "aseg.mgz", "deep-gray", NAMES), tmp_path)
    assert report.exit_status == 0
    assert [(c.name, c.destination) for c in report.written] == [("anna", "Tr"), ("bert", "Tr"), ("carl", "Un")]
    assert report.labels is not None
    assert report.labels.inverse() == {
        "0": [],
        **{str(i + 1): [n] for i, n in enumerate((10, 11, 12, 13, 49, 50, 51, 52))},
    }
    assert sided_labels(report.labels.labels).pairs == ((1, 5), (2, 6), (3, 7), (4, 8))
    for name, labels in truth.items():
        written = nibabel.load(tmp_path / f"Dataset501_Test/labelsTr/{name}.nii.gz")
        source = nibabel.as_closest_canonical(nibabel.MGHImage(labels, AFFINE))
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
        mapped = np.zeros(SHAPE, int)
        for label, number in enumerate((10, 11, 12, 13, 49, 50, 51, 52), start=1):
            mapped[labels == number] = label
        expected = nibabel.as_closest_canonical(nibabel.MGHImage(mapped.astype(np.int32), AFFINE))
        assert np.array_equal(written.get_fdata(), expected.get_fdata())


def test_a_chosen_list_and_a_colour_table(tmp_path: Path) -> None:
    assert choose("17,right-hippocampus", NAMES).labels == {
        "background": 0,
        "Left-Hippocampus": 1,
        "Right-Hippocampus": 2,
    }
    table = tmp_path / "FreeSurferColorLUT.txt"
    table.write_text("#No. Label Name: R G B A\n0   Unknown  0 0 0 0\n1025  ctx-lh-precuneus  160 140 180 0\n")
    assert choose("1025", table).names == ("ctx-lh-precuneus",)
    assert len(choose("all", NAMES).names) == 45
    with pytest.raises(DataError, match=r"'Hippocampus' is in no line"):
        choose("Hippocampus", NAMES)


def test_time_points_of_one_person_stay_together(tmp_path: Path) -> None:
    for index, name in enumerate(("tp1.long.anna", "tp2.long.anna", "bert", "carl")):
        fake_subject(tmp_path / name, index)
    listing = list_freesurfer(tmp_path, ["T1.mgz"], "aseg.mgz", "deep-gray", NAMES)
    assert [c.patient for c in listing.cases] == ["", "", "anna", "anna"]


def test_a_subject_that_is_not_finished(tmp_path: Path) -> None:
    fake_subject(tmp_path / "anna")
    (tmp_path / "bert/mri").mkdir(parents=True)
    listing = list_freesurfer(tmp_path, ["T1.mgz"], "aseg.mgz", "deep-gray", NAMES)
    assert listing.refused == {"bert": "bert/mri: lacks T1.mgz; finish or remove the subject"}
    with pytest.raises(DataError, match="SUBJECTS_DIR"):
        list_freesurfer(tmp_path / "anna", ["T1.mgz"], "aseg.mgz", "deep-gray", NAMES)


@pytest.mark.parametrize("damage", ["cut", "checksum", "text", "lie"])
def test_damaged_mgz_files(tmp_path: Path, damage: str) -> None:
    fake_subject(tmp_path / "anna")
    file = tmp_path / "anna/mri/T1.mgz"
    raw = file.read_bytes()
    plain = bytearray(gzip.decompress(raw))
    plain[4:8] = (30000).to_bytes(4, "big")  # the first dimension
    content = {
        "cut": raw[:-200],
        "checksum": raw[:-8] + bytes(4) + raw[-4:],
        "text": b"hello" * 100,
        "lie": gzip.compress(bytes(plain)),
    }
    file.write_bytes(content[damage])
    with pytest.raises(DataError, match=r"T1\.mgz"):
        read_image(Image(file))
    file.write_bytes(raw)
    with pytest.raises(DataError, match="at most 100 voxels"):
        read_image(Image(file), max_voxels=100)


def test_the_command(tmp_path: Path) -> None:
    fake_subject(tmp_path / "in/anna")
    line = [sys.executable, "-m", "ctnet_nnunet.cli.main", "convert", "freesurfer", str(tmp_path / "in")]
    line += ["--structures", "Left-Hippocampus,53", "-d", "9", "-n", "Hippo", "-o", str(tmp_path), "-np", "0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 Left-Hippocampus (was 17), 2 Right-Hippocampus (was 53)" in done.stdout


@pytest.mark.skipif(not (SHARED / "label_maps").is_dir(), reason="needs ../shared/data/label_maps")
def test_a_real_aseg(tmp_path: Path) -> None:
    """A real subject's numbers; the image is synthetic, made from them, because the label maps come without one."""
    source = nibabel.load(SHARED / "label_maps/training_seg_01.nii.gz")
    labels = np.asarray(source.dataobj).astype(np.int32)
    (tmp_path / "in/one/mri").mkdir(parents=True)
    nibabel.save(nibabel.MGHImage((labels % 97).astype(np.uint8), source.affine), tmp_path / "in/one/mri/T1.mgz")
    nibabel.save(nibabel.MGHImage(labels, source.affine), tmp_path / "in/one/mri/aseg.mgz")
    report = run(list_freesurfer(tmp_path / "in", ["T1.mgz"], "aseg.mgz", "deep-gray", NAMES), tmp_path)
    assert report.exit_status == 0
    voxels = report.outcomes["one"].voxels
    assert voxels is not None
    for label, number in enumerate((10, 11, 12, 13, 49, 50, 51, 52), start=1):
        assert voxels[label] == int((labels == number).sum()) > 500
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "Dataset501_Test/labelsTr/one.nii.gz")))
    left, right = (np.nonzero(np.isin(written, side))[2].mean() for side in ((1, 2, 3, 4), (5, 6, 7, 8)))
    assert left < right  # RAS: x runs to the right
