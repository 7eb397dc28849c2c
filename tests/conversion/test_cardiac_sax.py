"""The cardiac-sax source: ACDC's and M&Ms' layouts, their opposite label numbers, and real stacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.cardiac_sax import list_acdc, list_mms
from ctnet_nnunet.errors import DataError
from tests.conversion.fakes import SHARED, label_like, run, scan, write


def fake_acdc(root: Path) -> Path:
    """Four patients with two labelled frames each; the last one without labels."""
    for number, group in enumerate(("DCM", "HCM", "DCM", "NOR"), start=1):
        patient = f"patient{number:03d}"
        for frame in (1, 12):
            image = scan(number * 20 + frame)
            write(image, root / patient / f"{patient}_frame{frame:02d}.nii.gz")
            if number < 4:
                write(label_like(image, (1, 2, 3)), root / patient / f"{patient}_frame{frame:02d}_gt.nii.gz")
        write(sitk.JoinSeries([scan(), scan(1)]), root / patient / f"{patient}_4d.nii.gz")
        (root / patient / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {group}\nNbFrame: 30\n")
    return root


def test_acdc(tmp_path: Path) -> None:
    listing = list_acdc(fake_acdc(tmp_path / "in"))
    assert [(c.name, c.site) for c in listing.cases][:3] == [
        ("patient001_frame01", "DCM"),
        ("patient001_frame12", "DCM"),
        ("patient002_frame01", "HCM"),
    ]
    report = run(listing, tmp_path)
    assert report.exit_status == 0
    assert [c.destination for c in report.written] == ["Tr"] * 6 + ["Un"] * 2
    for split in report.splits:
        assert not {n[:10] for n in split["train"]} & {n[:10] for n in split["val"]}


def test_labels_without_an_image(tmp_path: Path) -> None:
    root = fake_acdc(tmp_path)
    (root / "patient002/patient002_frame12.nii.gz").unlink()
    listing = list_acdc(root)
    assert list(listing.refused) == ["patient002/patient002_frame12_gt.nii.gz"]
    with pytest.raises(DataError, match="as ACDC has"):
        list_acdc(root / "patient001" / "nothing")


def fake_mms(root: Path) -> Path:
    for code in ("A0S9V9", "B1C2D3"):
        frames = [scan(seed) for seed in range(4)]
        empty = label_like(frames[0], ())
        labels = [empty, label_like(frames[1], (1, 2, 3)), empty, label_like(frames[3], (3,))]
        write(sitk.JoinSeries(frames), root / f"Labeled/{code}/{code}_sa.nii.gz")
        write(sitk.JoinSeries(labels), root / f"Labeled/{code}/{code}_sa_gt.nii.gz")
    table = root / "information.csv"
    rows = "0,A0S9V9,Siemens,1,1,3\n1,B1C2D3,Philips,2,1,9\n2,Z9Z9Z9,GE,3,0,1\n"
    table.write_text(",External code,VendorName,Centre,ED,ES\n" + rows)
    return table


def test_mms(tmp_path: Path) -> None:
    table = fake_mms(tmp_path / "in")
    report = run(list_mms(tmp_path / "in", table), tmp_path)
    assert report.exit_status == 1
    assert [(c.name, c.site, c.patient) for c in report.written] == [
        ("A0S9V9_ED", "1", "A0S9V9"),
        ("A0S9V9_ES", "1", "A0S9V9"),
        ("B1C2D3_ED", "2", "B1C2D3"),
    ]
    assert "has 4 frames and no frame '9'" in report.refused["B1C2D3_ES"]
    assert report.refused["Z9Z9Z9"].startswith("Z9Z9Z9_sa.nii.gz: no such file")
    for phase, frame in (("ED", 1), ("ES", 3)):
        written = sitk.ReadImage(str(tmp_path / f"Dataset501_Test/imagesTr/A0S9V9_{phase}_0000.nii.gz"))
        expected = sitk.GetArrayFromImage(sitk.DICOMOrient(scan(frame), "RAS"))
        assert np.array_equal(sitk.GetArrayFromImage(written), expected)
    assert (report.outcomes["A0S9V9_ES"].voxels or {}).keys() == {0, 3}


def test_the_two_number_the_same_structures_differently(tmp_path: Path) -> None:
    acdc, mms = list_acdc(fake_acdc(tmp_path / "a")), list_mms(tmp_path / "m", fake_mms(tmp_path / "m"))
    assert acdc.label_map is not None
    assert mms.label_map is not None
    assert set(acdc.label_map.names) == set(mms.label_map.names)
    assert acdc.label_map.labels["left ventricle"] == 3
    assert mms.label_map.labels["left ventricle"] == 1


@pytest.mark.skipif(not (SHARED / "cardiac_sax").is_dir(), reason="needs ../shared/data/cardiac_sax")
def test_real_stacks(tmp_path: Path) -> None:
    """Sunnybrook's two phases of three patients under ACDC's names; only the left ventricle is labelled there."""
    source = SHARED / "cardiac_sax"
    for image in sorted((source / "images").iterdir())[:6]:
        name = image.name.removesuffix("_0000.nii.gz")
        patient, phase = name.rsplit("_p", 1)
        (tmp_path / "in" / patient).mkdir(parents=True, exist_ok=True)
        frame = tmp_path / "in" / patient / f"{patient}_frame{phase}.nii.gz"
        frame.symlink_to(image.resolve())
        frame.with_name(f"{patient}_frame{phase}_gt.nii.gz").symlink_to((source / f"labels/{name}.nii.gz").resolve())
    report = run(list_acdc(tmp_path / "in"), tmp_path, label_map="1=left ventricle")
    assert report.exit_status == 0
    assert len(report.splits) == 3
    assert all(len(split["val"]) == 2 for split in report.splits)
