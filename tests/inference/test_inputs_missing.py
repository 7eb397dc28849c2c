"""Scans that lack a whole pair of sequences, from files, DICOM, BIDS and zips; and those that lack one of a pair."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, find_cases
from tests.inference.test_inputs_dicom import series

CHANNELS = ["FLAIR", "T1", "T1c", "T2"]
PAIRS = ((1, 2), (3, 0))
WHOLE = "a scan may lack (T1, T1c) or (T2, FLAIR) as a whole"
DESCRIPTIONS = {"FLAIR": "ax FLAIR", "T1": "ax T1", "T1c": "ax T1 post", "T2": "ax T2"}
CHOICES = ("FLAIR=flair", "T1=T1$", "T1c=post", "T2=T2")
SUFFIXES = {"FLAIR": "FLAIR", "T1": "T1w", "T1c": "ce-gd_T1w", "T2": "T2w"}
BIDS_CHOICES = ("FLAIR=FLAIR", "T1=T1w,ce=", "T1c=T1w,ce=gd", "T2=T2w")


def find(source: Path, *choices: str, optional: tuple[tuple[int, ...], ...] = PAIRS) -> Found:
    workspace = source.parent / "workspace"
    workspace.mkdir()
    try:
        return find_cases(source, Wanted(CHANNELS, ".nii.gz", choices, optional), workspace)
    finally:
        shutil.rmtree(workspace)


def study(folder: Path, *names: str) -> None:
    uid = generate_uid()
    for seed, name in enumerate(names):
        series(folder, uid, DESCRIPTIONS[name], seed)


def descriptions(case: Case) -> list[str]:
    return [dcmread(image.slices[0]).SeriesDescription for image in case.images]


def session(root: Path, subject: str, *names: str) -> None:
    folder = root / f"sub-{subject}" / "anat"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"sub-{subject}_{SUFFIXES[name]}.nii.gz").write_bytes(b"x")


def test_studies(tmp_path: Path) -> None:
    root = tmp_path / "in"
    study(root / "whole", *CHANNELS)
    study(root / "a", "T2", "FLAIR")
    study(root / "b", "T1", "T1c")
    study(root / "single", "T1", "T2", "FLAIR")
    study(root / "three", "T1")
    for source in (root, Path(shutil.make_archive(str(tmp_path / "studies"), "zip", root))):
        found = find(source, *CHOICES)
        cases = {case.name: case for case in found.cases}
        assert {name: case.missing for name, case in cases.items()} == {"a": (1, 2), "b": (0, 3), "whole": ()}
        assert sorted(found.failures) == ["single", "three"]
        assert "lacks the channel T1c; its series: 'ax T1'" in found.failures["single"]
        assert "lacks the channel FLAIR, T1c, T2" in found.failures["three"]
        assert all(reason.endswith(WHOLE) for reason in found.failures.values())
    found = find(root, *CHOICES)
    cases = {case.name: case for case in found.cases}
    assert descriptions(cases["b"]) == ["ax T1", "ax T1", "ax T1 post", "ax T1"]
    assert [note for note in cases["b"].notes if note.startswith("FLAIR")] == [
        "FLAIR: none of the series 'ax T1' (5 files), 'ax T1 post' (5 files) fits"
    ]
    assert [case.name for case in find(root, *CHOICES, optional=()).cases] == ["whole"]


def test_sessions(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    session(root, "whole", *CHANNELS)
    session(root, "a", "T2", "FLAIR")
    session(root, "b", "T1", "T1c")
    session(root, "single", "T1c", "T2", "FLAIR")
    for source in (root, Path(shutil.make_archive(str(tmp_path / "sessions"), "zip", root))):
        found = find(source, *BIDS_CHOICES)
        missing = {case.name.partition("_")[0]: case.missing for case in found.cases}
        assert missing == {"sub-a": (1, 2), "sub-b": (0, 3), "sub-whole": ()}
        ((name, reason),) = found.failures.items()
        assert "single" in name and "lacks the channel T1w,ce=;" in reason
    (case,) = (case for case in found.cases if case.name.startswith("sub-b"))
    assert [image.path.name for image in case.images] == [f"sub-b_{part}.nii.gz" for part in (
        "T1w", "T1w", "ce-gd_T1w", "T1w")]  # fmt: skip
    assert case.label_name == "sub-b/anat/sub-b_desc-ctnet_dseg"
    with pytest.raises(DataError, match="its usual one where no session has it"):
        find(root)
    assert [case.name for case in find(root, *BIDS_CHOICES, optional=()).cases] == ["sub-whole"]


def test_files(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, numbers in (("a", (0, 3)), ("single", (0, 1, 3)), ("whole", (0, 1, 2, 3))):
        for number in numbers:
            (root / f"{name}_{number:04d}.nii.gz").write_bytes(b"x")
    for source in (root, Path(shutil.make_archive(str(tmp_path / "files"), "zip", root))):
        found = find(source)
        assert [(case.name, case.missing) for case in found.cases] == [("a", (1, 2)), ("whole", ())]
        assert found.failures == {"single": f"channel 0002 is missing: the model wants 4; {WHOLE}"}
