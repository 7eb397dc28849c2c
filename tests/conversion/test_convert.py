"""From a listing to a dataset: what is written, refused and repaired, and that nothing is left half-way."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.cases import Case, Image, Listing, case_name
from ctnet_nnunet.conversion.sources.nifti import list_pairs
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.folder_lock import folder_lock
from tests.conftest import NnunetEnv
from tests.conversion.fakes import all_points, files_under, label_like, pairs, run, scan, values_at, write


def test_what_a_dataset_holds(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source", numbers=(10, 255))
    write(scan(9), images / "extra.nii.gz")
    report = run(list_pairs(images, labels, ["T1w"]), tmp_path)
    dataset = tmp_path / "Dataset501_Test"
    assert report.exit_status == 0
    assert {p.name for p in (dataset / "imagesUn").iterdir()} == {"extra_0000.nii.gz"}
    assert sorted(p.name for p in (dataset / "labelsTr").iterdir()) == [f"case_{i}.nii.gz" for i in range(3)]
    assert json.loads((dataset / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "label_10": 1, "label_255": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    record = json.loads((dataset / "conversion.json").read_text())
    assert record["label_map"]["source_numbers"] == {"0": [], "1": [10], "2": [255]}
    assert sorted(record["files"]) == sorted(set(files_under(dataset)) - {"conversion.json"})
    assert len(json.loads((dataset / "splits_final.json").read_text())) == 3
    page = (dataset / "conversion" / "summary.html").read_text()
    assert page.count("<img") == 4
    assert all((dataset / "conversion" / f"case_{i}.png").stat().st_size > 200 for i in range(3))
    assert not list(tmp_path.glob(".*"))


def test_nnunet_accepts_it(tmp_path: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    images, labels = pairs(tmp_path / "source", numbers=(49, 10))
    run(list_pairs(images, labels, []), tmp_path)
    for label in sorted((tmp_path / "Dataset501_Test" / "labelsTr").iterdir()):
        image = label.parents[1] / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
        assert verify_labels(str(label), SimpleITKIO, [0, 1, 2])
        assert check_cases([str(image)], str(label), 1, SimpleITKIO)


def test_twice_gives_the_same_bytes_in_processes_too(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    write(label_like(scan(), (3,)), labels / "nobody.nii.gz")
    for out, processes in (("one", 0), ("two", 2)):
        run(list_pairs(images, labels, []), tmp_path / out, processes=processes)
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")


def test_no_voxel_moves_and_none_changes(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source", count=1)
    run(list_pairs(images, labels, []), tmp_path)
    source, mask = scan(0), label_like(scan(0))
    points = all_points(source)
    written = sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/case_0_0000.nii.gz"))
    written_mask = sitk.ReadImage(str(tmp_path / "Dataset501_Test/labelsTr/case_0.nii.gz"))
    assert written.GetPixelID() == sitk.sitkFloat32
    assert values_at(written, points) == values_at(source, points)
    assert values_at(written_mask, points) == values_at(mask, points)


def one_case(tmp_path: Path, label: sitk.Image | None = None, *channels: sitk.Image) -> Listing:
    files = [write(image, tmp_path / f"source/c{i}.nii.gz") for i, image in enumerate((scan(), *channels))]
    mask = Image(write(label, tmp_path / "source/label.nii.gz")) if label is not None else None
    good = (
        write(scan(5), tmp_path / "source/good.nii.gz"),
        write(label_like(scan(5)), tmp_path / "source/good_l.nii.gz"),
    )
    listing = Listing(tmp_path / "source", [f"C{i}" for i in range(len(files))])
    listing.cases = [
        Case("one", tuple(Image(f) for f in files), mask),
        Case("good", (Image(good[0]),) * len(files), Image(good[1])),
    ]
    return listing


def test_header_noise_is_repaired_and_said(tmp_path: Path) -> None:
    label = label_like(scan())
    label.SetOrigin((-11.0003, 22.0, 33.0))
    report = run(one_case(tmp_path, label), tmp_path)
    assert report.exit_status == 0
    assert "label.nii.gz: header repaired" in report.outcomes["one"].notes[0]
    written = [
        sitk.ReadImage(str(tmp_path / f"Dataset501_Test/{n}"))
        for n in ("imagesTr/one_0000.nii.gz", "labelsTr/one.nii.gz")
    ]
    assert written[0].GetOrigin() == written[1].GetOrigin()


def test_a_turned_label_is_refused_until_asked_for(tmp_path: Path) -> None:
    label = label_like(scan())
    listing = one_case(tmp_path, sitk.DICOMOrient(label, "RAI"))
    report = run(listing, tmp_path)
    assert report.exit_status == 1
    assert "stored as RAI and not as LPS" in report.refused["one"]
    assert "--reorient" in report.refused["one"]
    assert (tmp_path / "Dataset501_Test/conversion/one.png").is_file()
    assert [c.name for c in report.written] == ["good"]
    report = run(one_case(tmp_path, sitk.DICOMOrient(label, "RAI")), tmp_path, reorient=True, force=True)
    assert report.exit_status == 0
    written = sitk.ReadImage(str(tmp_path / "Dataset501_Test/labelsTr/one.nii.gz"))
    assert values_at(written, all_points(label)) == values_at(label, all_points(label))


def test_another_grid_is_refused_with_a_picture(tmp_path: Path) -> None:
    label = label_like(scan())
    label.SetOrigin((-9.0, 22.0, 33.0))
    report = run(one_case(tmp_path, label), tmp_path)
    assert "label.nii.gz: lies on another grid than its image, up to 2 mm off" in report.refused["one"]
    picture = tmp_path / "Dataset501_Test/conversion/one.png"
    assert picture.is_file()
    assert 'src="one.png"' in (picture.parent / "summary.html").read_text()
    assert not list((tmp_path / "Dataset501_Test").rglob("one*.nii.gz"))


def test_a_label_map_of_somewhere_else(tmp_path: Path) -> None:
    label = label_like(scan())
    label.SetOrigin((900.0, 22.0, 33.0))
    assert "none of it lies inside the image" in run(one_case(tmp_path, label), tmp_path).refused["one"]


def test_a_channel_on_another_grid(tmp_path: Path) -> None:
    coarse = scan(3, size=(4, 4, 4))
    report = run(one_case(tmp_path, label_like(scan()), coarse), tmp_path)
    assert "--resample-to-first" in report.refused["one"]
    report = run(one_case(tmp_path, label_like(scan()), coarse), tmp_path, resample_to_first=True, force=True)
    assert "resampled (linear)" in report.outcomes["one"].notes[0]
    written = sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/one_0001.nii.gz"))
    assert written.GetSize() == scan().GetSize()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _disagreeing_sides(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2h", raw, 252, 1, 1)
    (x,) = struct.unpack_from("<f", raw, 280)
    struct.pack_into("<f", raw, 280, -x)
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "damaged or cut off"),
        (lambda path: path.write_bytes(b"no image at all" * 40), "c0.nii.gz"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: write(sitk.Image(scan()) * 0, path), "all voxels are 0"),
        (_disagreeing_sides, "name different sides"),
        (lambda path: write(sitk.JoinSeries([scan(), scan()]), path), "4 dimensions"),
    ],
)
@pytest.mark.parametrize("processes", [0])
def test_a_bad_file_is_named_and_the_rest_converted(tmp_path: Path, damage, reason: str, processes: int) -> None:
    listing = one_case(tmp_path, label_like(scan()))
    damage(tmp_path / "source/c0.nii.gz")
    report = run(listing, tmp_path, processes=processes)
    assert report.exit_status == 1
    assert reason in report.refused["one"]
    assert "c0.nii.gz" in report.refused["one"]
    assert "\n" not in report.refused["one"]
    assert [case.name for case in report.written] == ["good"]
    assert not list((tmp_path / "Dataset501_Test").rglob("one*.nii.gz"))


def test_labels_with_fractions(tmp_path: Path) -> None:
    label = sitk.Cast(label_like(scan()), sitk.sitkFloat32) * 0.5
    report = run(one_case(tmp_path, label), tmp_path)
    assert "label.nii.gz: holds fractions such as 0.5" in report.refused["one"]


def test_an_unlisted_number(tmp_path: Path) -> None:
    report = run(one_case(tmp_path, label_like(scan(), (1, 4))), tmp_path, label_map="1=a,2=b")
    assert "holds the number 4" in report.refused["one"]


def test_numbers_of_refused_cases_do_not_become_labels(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source", numbers=(10, 49))
    foreign = label_like(scan(), (3, 20, 60))
    foreign.SetOrigin((0.0, 0.0, 0.0))
    write(foreign, labels / "case_1.nii.gz")
    report = run(list_pairs(images, labels, []), tmp_path)
    assert list(report.refused) == ["case_1"]
    dataset = tmp_path / "Dataset501_Test"
    assert json.loads((dataset / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "label_10": 1,
        "label_49": 2,
    }
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr/case_0.nii.gz")))
    assert np.unique(written).tolist() == [0, 1, 2]


def test_nothing_converted_leaves_no_dataset_but_a_page(tmp_path: Path) -> None:
    label = label_like(scan())
    label.SetOrigin((0.0, 0.0, 0.0))
    listing = one_case(tmp_path, label)
    listing.cases.pop()
    report = run(listing, tmp_path)
    assert report.exit_status == 2
    assert [p.name for p in tmp_path.glob("*Dataset501*")] == [".Dataset501_Test.refused"]
    assert report.page is not None
    assert (report.page.parent / "one.png").is_file()


def test_duplicate_names_after_renaming(tmp_path: Path) -> None:
    file = Image(write(scan(), tmp_path / "source/a b.nii.gz"))
    other = Image(write(scan(1), tmp_path / "source/a_b.nii.gz"))
    third = Image(write(scan(2), tmp_path / "source/c.nii.gz"))
    listing = Listing(tmp_path / "source", ["T1"])
    listing.cases = [Case(case_name("a b"), (file,)), Case(case_name("a_b"), (other,)), Case("c", (third,))]
    report = run(listing, tmp_path)
    assert set(report.refused) == {"a b.nii.gz", "a_b.nii.gz"}
    assert "becomes the case 'a_b' as a_b.nii.gz does" in report.refused["a b.nii.gz"]
    assert [c.name for c in report.written] == ["c"]


def test_never_overwrites(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    run(list_pairs(images, labels, []), tmp_path)
    before = files_under(tmp_path / "Dataset501_Test")
    with pytest.raises(DataError, match="--force"):
        run(list_pairs(images, labels, []), tmp_path)
    with pytest.raises(DataError, match=r"id 501 is taken by .*Dataset501_Test"):
        run(list_pairs(images, labels, []), tmp_path, name="Other", force=True)
    run(list_pairs(images, labels, []), tmp_path, force=True)
    assert files_under(tmp_path / "Dataset501_Test") == before
    (tmp_path / "Dataset501_Test/imagesUn").mkdir()
    (tmp_path / "Dataset501_Test/imagesUn/mine_0000.nii.gz").touch()
    with pytest.raises(DataError, match=r"mine_0000\.nii\.gz: was not written by ctnet convert"):
        run(list_pairs(images, labels, []), tmp_path, force=True)


def test_a_foreign_dataset_is_left_alone(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    (tmp_path / "Dataset501_Test/imagesTr").mkdir(parents=True)
    with pytest.raises(DataError, match="move it away"):
        run(list_pairs(images, labels, []), tmp_path, force=True)


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pairs(tmp_path / "source")
    run(list_pairs(images, labels, []), tmp_path)
    before = files_under(tmp_path / "Dataset501_Test")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctnet_nnunet.conversion.record.write_page", stop)
    with pytest.raises(KeyboardInterrupt):
        run(list_pairs(images, labels, []), tmp_path, force=True)
    assert files_under(tmp_path / "Dataset501_Test") == before
    assert not list(tmp_path.glob(".*"))


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    with (
        folder_lock(tmp_path / ".Dataset501_Test.partial"),
        pytest.raises(SetupError, match=r"\.partial: a run or one of its commands still works there"),
    ):
        run(list_pairs(images, labels, []), tmp_path)


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    left = tmp_path / ".Dataset501_Test.partial"
    (left / "imagesTr").mkdir(parents=True)
    (left / "imagesTr" / "stale_0000.nii.gz").write_bytes(b"half a scan")
    (left / ".lock").touch()
    run(list_pairs(images, labels, []), tmp_path)
    assert not left.exists()
    files = files_under(tmp_path / "Dataset501_Test")
    assert not [name for name in files if "stale" in name or ".lock" in name]
    assert run(list_pairs(images, labels, []), tmp_path, force=True).exit_status == 0


def test_on_a_system_without_locks_a_left_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pairs(tmp_path / "source")
    (tmp_path / ".Dataset501_Test.partial").mkdir()
    monkeypatch.setattr("ctnet_nnunet.conversion.target.HAS_LOCKS", False)
    with pytest.raises(DataError, match="remove the folder"):
        run(list_pairs(images, labels, []), tmp_path)


def test_a_dry_run_writes_nothing_and_names_bad_headers(tmp_path: Path) -> None:
    images, labels = pairs(tmp_path / "source")
    (images / "case_1.nii.gz").write_bytes(b"")
    report = run(list_pairs(images, labels, []), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert list(report.refused) == ["case_1"]
    assert report.exit_status == 1


def test_the_raw_folder_comes_from_the_environment(tmp_path: Path, fresh_nnunet_env: NnunetEnv) -> None:
    images, labels = pairs(tmp_path / "source")
    run(list_pairs(images, labels, []), None)  # type: ignore[arg-type]
    assert (fresh_nnunet_env.raw / "Dataset501_Test/dataset.json").is_file()


def test_no_raw_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    images, labels = pairs(tmp_path / "source")
    with pytest.raises(SetupError, match="nnUNet_raw is not set"):
        run(list_pairs(images, labels, []), None)  # type: ignore[arg-type]


def test_folds_reach_a_dataset_that_was_planned(tmp_path: Path, fresh_nnunet_env: NnunetEnv) -> None:
    images, labels = pairs(tmp_path / "source")
    planned = fresh_nnunet_env.preprocessed / "Dataset501_Test"
    planned.mkdir()
    (planned / "splits_final.json").write_text("[]")
    with pytest.raises(DataError, match=r"splits_final\.json: exists; --force"):
        run(list_pairs(images, labels, []), fresh_nnunet_env.raw)
    report = run(list_pairs(images, labels, []), fresh_nnunet_env.raw, force=True)
    raw = (fresh_nnunet_env.raw / "Dataset501_Test/splits_final.json").read_bytes()
    assert (planned / "splits_final.json").read_bytes() == raw
    assert "plan and preprocess" in report.notes[-1]


def test_a_2d_scan_stays_2d(tmp_path: Path) -> None:
    image = scan(size=(9, 8))
    write(image, tmp_path / "source/images/a.nii.gz")
    write(label_like(image), tmp_path / "source/labels/a.nii.gz")
    report = run(list_pairs(tmp_path / "source/images", tmp_path / "source/labels", []), tmp_path)
    assert report.exit_status == 0
    written = sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/a_0000.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(image))
