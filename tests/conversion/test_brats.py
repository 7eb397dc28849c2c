"""The brats source: both ways of naming, its label 4, regions, and two real gliomas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.sources.brats import CHANNELS, list_brats
from ctnet_nnunet.errors import DataError
from tests.conversion.fakes import SHARED, label_like, run, scan, write

OLD = ("t1", "t1ce", "t2", "flair")
NEW = ("t1n", "t1c", "t2w", "t2f")


def fake_case(root: Path, name: str, separator: str, numbers: tuple[int, ...] = ()) -> None:
    for index, kind in enumerate(OLD if separator == "_" else NEW):
        write(scan(index), root / name / f"{name}{separator}{kind}.nii.gz")
    if numbers:
        write(label_like(scan(), numbers), root / name / f"{name}{separator}seg.nii.gz")


def test_files_up_to_2021(tmp_path: Path) -> None:
    fake_case(tmp_path / "in/HGG", "BraTS19_2013_10_1", "_", (1, 2, 4))
    fake_case(tmp_path / "in/LGG", "BraTS19_2013_0_1", "_", (2,))
    fake_case(tmp_path / "in/validation", "BraTS19_UAB_3454_1", "_")
    report = run(list_brats(tmp_path / "in", list(CHANNELS), False, False), tmp_path)
    assert report.exit_status == 0
    assert [c.destination for c in report.written] == ["Tr", "Tr", "Un"]
    assert report.labels is not None
    assert report.labels.inverse() == {"0": [], "1": [1], "2": [2], "3": [4]}
    written = sitk.GetArrayFromImage(
        sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/BraTS19_2013_10_1_0003.nii.gz"))
    )
    flair = sitk.DICOMOrient(scan(3), "RAS")
    assert np.array_equal(written, sitk.GetArrayFromImage(flair))


def test_files_since_2023_and_visits(tmp_path: Path) -> None:
    for visit in ("000", "001"):
        fake_case(tmp_path, f"BraTS-GLI-00012-{visit}", "-", (1, 2, 3))
    listing = list_brats(tmp_path, list(CHANNELS), False, False)
    assert [c.patient for c in listing.cases] == ["BraTS-GLI-00012"] * 2
    assert listing.label_map is not None
    assert listing.label_map.targets[3] == 3
    assert 4 not in listing.label_map.targets


def test_regions_paint_the_labels_back(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake_case(tmp_path / "in", name, "-", (1, 2, 3, 4))
    run(list_brats(tmp_path / "in", ["FLAIR"], True, True), tmp_path)
    content = json.loads((tmp_path / "Dataset501_Test/dataset.json").read_text())
    regions = {name: value for name, value in content["labels"].items() if name != "background"}
    assert regions == {
        "whole tumour": [2, 1, 3],
        "tumour core": [1, 3],
        "enhancing tumour": [3],
        "resection cavity": [4],
    }
    for truth in range(1, 5):  # as nnU-Net paints: region by region, each with its label of regions_class_order
        painted = 0
        for members, label in zip(regions.values(), content["regions_class_order"], strict=True):
            painted = label if truth in members else painted
        assert painted == truth


def test_regions_need_their_labels(tmp_path: Path) -> None:
    fake_case(tmp_path / "in", "a", "-", (1, 2, 3))
    with pytest.raises(DataError, match="lacks enhancing tumour, oedema"):
        run(list_brats(tmp_path / "in", ["FLAIR"], True, False), tmp_path, label_map="1=necrosis")


def test_what_is_refused(tmp_path: Path) -> None:
    fake_case(tmp_path, "good", "_", (1,))
    fake_case(tmp_path, "part", "_", (1,))
    (tmp_path / "part/part_t2.nii.gz").unlink()
    write(label_like(scan()), tmp_path / "orphan/orphan_seg.nii.gz")
    write(scan(), tmp_path / "copy/good_t1.nii.gz")
    listing = list_brats(tmp_path, list(CHANNELS), False, False)
    assert listing.cases == []
    assert listing.refused["part"].startswith("lacks the channel T2")
    assert listing.refused["orphan/orphan_seg.nii.gz"].startswith("is a label map without an image")
    assert "copy/good_t1.nii.gz" in listing.refused["good"]
    fake_case(tmp_path, "new", "-", (1,))
    with pytest.raises(DataError, match="convert them apart"):
        list_brats(tmp_path, list(CHANNELS), False, False)
    with pytest.raises(DataError, match="'PD': is none of T1"):
        list_brats(tmp_path, ["PD"], False, False)


@pytest.mark.skipif(
    not (SHARED / "glioma_two_modalities").is_dir(), reason="needs ../shared/data/glioma_two_modalities"
)
def test_two_real_gliomas(tmp_path: Path) -> None:
    source = SHARED / "glioma_two_modalities"
    for case in ("brats15_0001", "brats15_0003"):
        (tmp_path / "in" / case).mkdir(parents=True)
        for file, kind in (
            (f"images/{case}_0000", "flair"),
            (f"images/{case}_0001", "t1ce"),
            (f"labels/{case}", "seg"),
        ):
            (tmp_path / "in" / case / f"{case}_{kind}.nii.gz").symlink_to((source / f"{file}.nii.gz").resolve())
    names = str(source / "dataset.json")  # 2015: four labels, 3 is non-enhancing
    report = run(list_brats(tmp_path / "in", ["FLAIR", "T1ce"], False, False), tmp_path, label_map=names)
    assert report.exit_status == 0
    for case in ("brats15_0001", "brats15_0003"):
        before = sitk.GetArrayFromImage(sitk.ReadImage(str(source / f"labels/{case}.nii.gz")))
        voxels = report.outcomes[case].voxels
        assert voxels == {int(n): int(c) for n, c in zip(*np.unique(before, return_counts=True), strict=True)}


def fake_case_of_2015(root: Path, name: str, number: int, labelled: bool = True) -> None:
    for index, kind in enumerate(("MR_T1", "MR_T1c", "MR_T2", "MR_Flair", "OT")[: 5 if labelled else 4]):
        file = f"VSD.Brain{'_3more' if kind == 'OT' else ''}.XX.O.{kind}.{number + index}"
        image = label_like(scan(), (1, 2, 3, 4)) if kind == "OT" else scan(index)
        write(image, root / name / file / f"{file}.mha")


def test_files_of_2015(tmp_path: Path) -> None:
    """A case is the folder above the files' own; label 3 is the non-enhancing tumour."""
    fake_case_of_2015(tmp_path / "in/HGG", "brats_2013_pat0001_1", 54512)
    fake_case_of_2015(tmp_path / "in/HGG", "brats_tcia_pat105_0001", 60000)
    fake_case_of_2015(tmp_path / "in/testing", "brats_tcia_pat300_0001", 70000, labelled=False)
    listing = list_brats(tmp_path / "in", list(CHANNELS), True, False)
    report = run(listing, tmp_path)
    assert report.exit_status == 0
    assert [c.destination for c in report.written] == ["Tr", "Tr", "Un"]
    content = json.loads((tmp_path / "Dataset501_Test/dataset.json").read_text())
    assert content["labels"]["whole tumour"] == [2, 1, 3, 4]
    assert content["labels"]["tumour core"] == [1, 3, 4]
    assert content["labels"]["enhancing tumour"] == [4]
    written = sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/brats_2013_pat0001_1_0003.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(sitk.DICOMOrient(scan(3), "RAS")))
    with pytest.raises(DataError, match="--post-treatment is for the files since 2024"):
        list_brats(tmp_path / "in", list(CHANNELS), False, True)
    fake_case(tmp_path / "in", "later", "_", (1,))
    with pytest.raises(DataError, match=r"VSD\.Brain… \(up to 2015\) and names with _ .* convert them apart"):
        list_brats(tmp_path / "in", list(CHANNELS), False, False)
