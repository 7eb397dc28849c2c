"""Studies and series of DICOM folders as cases, and what is wrong with those that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import generate_uid

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs import Found, Wanted, find_cases
from tests.conversion.fake_dicom import write_series


def scan(slices: int = 5) -> sitk.Image:
    values = np.random.default_rng(0).integers(0, 100, (slices, 6, 7)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 2.0))
    return image


def series(folder: Path, study: str, name: str, seed: int = 0, **tags: object) -> list[Path]:
    return write_series(scan(), folder, seed, StudyInstanceUID=study, SeriesDescription=name, **tags)


def find(source: Path, channels: list[str], *choices: str) -> Found:
    return find_cases(source, Wanted(channels, ".nii.gz", choices), source.parent)


def test_each_study_is_a_case_wherever_its_files_lie(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        series(tmp_path / "in" / patient / "s1", generate_uid(), "t1")
    found = find(tmp_path / "in", ["image"])
    assert sorted(case.name for case in found.cases) == ["a_s1", "b_s1"]
    assert all(case.dicom and len(case.images[0].slices) == 5 for case in found.cases)


def test_a_series_in_two_folders_is_one_volume(tmp_path: Path) -> None:
    files = series(tmp_path / "in" / "1", generate_uid(), "t1")
    (tmp_path / "in" / "2").mkdir()
    for file in files[::2]:
        file.rename(tmp_path / "in" / "2" / file.name)
    (case,) = find(tmp_path / "in", ["image"]).cases
    assert len(case.images[0].slices) == 5


def test_channels_are_chosen_by_description_and_never_guessed(tmp_path: Path) -> None:
    study = generate_uid()
    for seed, name in enumerate(("ax T1", "ax FLAIR", "ax T1 post")):
        series(tmp_path / "in", study, name, seed)
    found = find(tmp_path / "in", ["T1", "FLAIR"], "T1=T1$", "FLAIR=flair")
    (case,) = found.cases
    assert [dcmread(image.slices[0]).SeriesDescription for image in case.images] == ["ax T1", "ax FLAIR"]
    for channels, choices, words in (
        (["T1", "FLAIR"], (), "which of 3 series"),
        (["T1"], (), "which of 3 series"),
        (["T1", "FLAIR"], ("T1=T1", "FLAIR=flair"), "2 series for the channel T1"),
        (["T1", "T2"], ("T1=T1$", "T2=T2"), "lacks the channel T2"),
    ):
        (reason,) = find(tmp_path / "in", channels, *choices).failures.values()
        assert words in reason
    with pytest.raises(DataError, match="say which is FLAIR"):
        find(tmp_path / "in", ["T1", "FLAIR"], "T1=T1$")
    every = find(tmp_path / "in", ["T1"], "T1=.")
    assert sorted(case.name for case in every.cases) == ["in_ax_FLAIR", "in_ax_T1", "in_ax_T1_post"]


@pytest.mark.parametrize(
    ("channel", "modality", "refused"),
    [("CT", "MR", True), ("T1", "CT", True), ("T1", "MR", False), ("x", "CT", False)],
)
def test_the_modality(tmp_path: Path, channel: str, modality: str, refused: bool) -> None:
    series(tmp_path / "in", generate_uid(), "a", Modality=modality)
    found = find(tmp_path / "in", [channel])
    assert bool(found.failures) == refused
    assert not refused or f"is {modality}, the model's channel {channel}" in next(iter(found.failures.values()))


def test_bad_series_are_named_and_the_others_kept(tmp_path: Path) -> None:
    positions = [[0.0, 0.0, 2.0 * index] for index in range(5)]
    series(tmp_path / "in" / "good", generate_uid(), "t1")
    tilted = [[0.0, 0.8 * index, 2.0 * index] for index in range(5)]
    series(tmp_path / "in" / "tilted", generate_uid(), "t1", ImagePositionPatient=tilted)
    gap = [*positions[:4], [0.0, 0.0, 11.0]]
    series(tmp_path / "in" / "gap", generate_uid(), "t1", ImagePositionPatient=gap)
    mixed = [[1.0, 0, 0, 0, 1, 0]] * 4 + [[0.0, 1, 0, 0, 0, 1]]
    series(tmp_path / "in" / "mixed", generate_uid(), "t1", ImageOrientationPatient=mixed)
    cut = series(tmp_path / "in" / "cut", generate_uid(), "t1")[2]
    cut.write_bytes(cut.read_bytes()[:-40])
    found = find(tmp_path / "in", ["image"])
    assert [case.name for case in found.cases] == ["good"]
    words = {
        "tilted": "gantry tilt",
        "gap": "irregular slice gaps",
        "mixed": "mixes 2 slice orientations",
        "cut": "is cut",
    }
    assert sorted(found.failures) == sorted(words)
    for name, said in words.items():
        assert said in found.failures[name]


def test_one_slice_and_what_others_derived(tmp_path: Path) -> None:
    file, *_ = series(tmp_path / "in", generate_uid(), "t1")
    with pytest.raises(DataError, match="one slice of a series"):
        find(file, ["image"])
    series(tmp_path / "in", generate_uid(), "old segmentation", 1, Modality="SEG")
    assert len(find(tmp_path / "in", ["image"]).cases) == 1
