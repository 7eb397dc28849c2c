"""A validation case among the preprocessed scans is found by its content, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.copies import refuse_copies
from ctnet_nnunet.unlabeled.records import SUFFIXES, describe_input, write_record

DATASET = {"file_ending": ".nii.gz"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    for folder in ("imagesTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    for case, content in (("a", b"first"), ("b", b"other"), ("c", b"third one")):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(content)
    return raw


def preprocessed(raw: Path, content: bytes) -> Path:
    """What the command leaves behind for one scan."""
    scan, folder = raw / "imagesUn" / "scan_0000.nii.gz", raw.parent / "unlabeled"
    scan.write_bytes(content)
    folder.mkdir()
    for suffix in SUFFIXES:
        (folder / f"scan{suffix}").write_bytes(b"")
    write_record(folder, "scan", "hash", [describe_input(scan)])
    return folder


def test_a_copy_is_refused_by_both_names(raw: Path) -> None:
    folder = preprocessed(raw, b"other")
    with pytest.raises(DataError, match=r"scan in .* same file as b_0000\.nii\.gz, a validation case"):
        refuse_copies(folder, ["scan"], raw, DATASET, ["a", "b"])
    refuse_copies(folder, ["scan"], raw, DATASET, ["a", "c"])
    listed = {**DATASET, "dataset": {"x": {"images": ["imagesTr/b_0000.nii.gz"]}}}
    with pytest.raises(DataError, match="same file as b_0000"):
        refuse_copies(folder, ["scan"], raw, listed, ["x"])


def test_other_scans_and_absent_raw_data_pass(raw: Path, tmp_path: Path) -> None:
    folder = preprocessed(raw, b"OTHER")  # as long as two cases
    refuse_copies(folder, ["scan"], raw, DATASET, ["a", "b", "c"])
    refuse_copies(folder, ["scan"], tmp_path / "nowhere", DATASET, ["a", "b", "c"])
