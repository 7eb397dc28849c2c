"""The bids source, on a tiny dataset of that layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.bids import list_bids
from ctnet_nnunet.errors import DataError
from tests.conversion.fakes import SHARED, label_like, run, scan, write

SESSIONS = (("01", "a"), ("01", "b"), ("02", "a"), ("03", ""), ("04", ""))


def fake_bids(root: Path) -> Path:
    """Four subjects, one of them with two sessions; T1w and FLAIR; manual labels but for the last subject."""
    for number, (subject, session) in enumerate(SESSIONS):
        place = Path(f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat")
        name = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        write(scan(number), root / place / f"{name}_T1w.nii.gz")
        write(scan(number + 50), root / place / f"{name}_acq-3d_FLAIR.nii.gz")
        if subject != "04":
            label = label_like(scan(number), (17, 53))
            write(label, root / "derivatives/manual" / place / f"{name}_desc-manual_dseg.nii.gz")
            write(label, root / "derivatives/auto" / place / f"{name}_desc-auto_dseg.nii.gz")
    table = "index\tname\tabbreviation\n0\tbackground\tBG\n17\tleft hippocampus\tlh\n53\tright hippocampus\trh\n"
    (root / "derivatives/manual/desc-manual_dseg.tsv").write_text(table)
    rows = "".join(f"sub-{s}\t30\t{'A' if s in ('01', '03') else 'B'}\n" for s in ("01", "02", "03", "04"))
    (root / "participants.tsv").write_text("participant_id\tage\tscanner\n" + rows)
    return root


def test_sessions_channels_labels_and_sites(tmp_path: Path) -> None:
    root = fake_bids(tmp_path / "study")
    listing = list_bids(root, ["T1w", "FLAIR,acq=3d"], "dseg,desc=manual", None, "scanner")
    assert listing.channels == ["T1w", "FLAIR_acq=3d"]
    assert [(c.name, c.patient, c.site, c.destination) for c in listing.cases] == [
        ("sub-01_ses-a", "sub-01", "A", "Tr"),
        ("sub-01_ses-b", "sub-01", "A", "Tr"),
        ("sub-02_ses-a", "sub-02", "B", "Tr"),
        ("sub-03", "sub-03", "A", "Tr"),
        ("sub-04", "sub-04", "B", "Un"),
    ]
    report = run(listing, tmp_path)
    dataset = tmp_path / "Dataset501_Test"
    assert report.exit_status == 0
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "left hippocampus": 1, "right hippocampus": 2}
    for split in json.loads((dataset / "splits_final.json").read_text()):
        assert len({"sub-01_ses-a", "sub-01_ses-b"} & set(split["val"])) in (0, 2)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr/sub-03.nii.gz")))
    assert np.unique(written).tolist() == [0, 1, 2]


def test_what_is_refused(tmp_path: Path) -> None:
    root = fake_bids(tmp_path)
    next((root / "sub-02").rglob("*FLAIR*")).unlink()
    write(scan(), root / "sub-03/anat/sub-03_run-2_T1w.nii.gz")
    write(label_like(scan()), root / "derivatives/manual/sub-09/anat/sub-09_desc-manual_dseg.nii.gz")
    listing = list_bids(root, ["T1w", "FLAIR"], "dseg,desc=manual", None, None)
    assert [c.name for c in listing.cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-04"]
    assert listing.refused["sub-02_ses-a"].startswith("lacks the channel FLAIR")
    assert "sub-03/anat/sub-03_T1w.nii.gz" in listing.refused["sub-03"]
    assert "run=1" in listing.refused["sub-03"]
    without_run = list_bids(root, ["T1w,run="], None, None, None)
    assert without_run.refused == {}
    orphan = "derivatives/manual/sub-09/anat/sub-09_desc-manual_dseg.nii.gz"
    assert listing.refused[orphan].startswith("is a label map without an image")


def test_two_label_maps_for_a_session(tmp_path: Path) -> None:
    listing = list_bids(fake_bids(tmp_path), ["T1w"], "dseg", None, None)
    assert [c.name for c in listing.cases] == ["sub-04"]
    assert "desc-auto_dseg.nii.gz" in listing.refused["sub-01_ses-a"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root": "nowhere"}, "no sub-… folder"),
        ({"channels": ["acq=3d"]}, "wanted a suffix"),
        ({"channels": ["T1w,3d"]}, "wanted a suffix"),
        ({"channels": ["PDw"]}, "no file fits PDw"),
        ({"derivatives": "nowhere"}, "no such folder"),
        ({"site_column": "hospital"}, "no column hospital"),
    ],
)
def test_unusable_requests(tmp_path: Path, change: dict, reason: str) -> None:
    root = fake_bids(tmp_path)
    request = {"root": root, "channels": ["T1w"], "labels": "dseg", "derivatives": None, "site_column": None}
    request |= {key: root / value if value == "nowhere" else value for key, value in change.items()}
    if reason.startswith("no file"):
        request["labels"] = None
    with pytest.raises(DataError, match=reason):
        list_bids(**request)


def test_the_command(tmp_path: Path) -> None:
    root = fake_bids(tmp_path / "study")
    line = [sys.executable, "-m", "ctnet_nnunet.cli.main", "convert", "bids", str(root), "--channel", "T1w"]
    line += ["--labels", "dseg,desc=manual", "-d", "3", "-n", "Hippocampus", "-o", str(tmp_path), "-np", "0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 in imagesTr, 1 in imagesUn, 0 refused" in done.stdout
    assert "1 left hippocampus (was 17), 2 right hippocampus (was 53)" in done.stdout


@pytest.mark.skipif(not (SHARED / "four_modalities").is_dir(), reason="needs ../shared/data/four_modalities")
def test_real_scans_in_bids_form(tmp_path: Path) -> None:
    root, source = tmp_path / "study", SHARED / "four_modalities"
    for patient in ("07", "19"):
        anat = root / f"sub-{patient}/anat"
        anat.mkdir(parents=True)
        for number, suffix in ((0, "T1w"), (3, "FLAIR")):
            link = anat / f"sub-{patient}_{suffix}.nii.gz"
            link.symlink_to((source / f"images/openms_{patient}_{number:04d}.nii.gz").resolve())
        mask = root / f"derivatives/lesions/sub-{patient}/anat/sub-{patient}_label-lesion_mask.nii.gz"
        mask.parent.mkdir(parents=True)
        mask.symlink_to((source / f"labels/openms_{patient}.nii.gz").resolve())
    listing = list_bids(root, ["T1w", "FLAIR"], "mask,label=lesion", None, None)
    report = run(listing, tmp_path, label_map="1=lesion")
    assert report.exit_status == 0
    for patient in ("07", "19"):
        before = sitk.GetArrayViewFromImage(sitk.ReadImage(str(source / f"labels/openms_{patient}.nii.gz")))
        voxels = report.outcomes[f"sub-{patient}"].voxels
        assert voxels is not None
        assert voxels[1] == int((before == 1).sum())
