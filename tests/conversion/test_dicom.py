"""The dicom source: what makes a volume, what is refused by name, and real series."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import generate_uid

from ctnet_nnunet.conversion import dicom_pixels
from ctnet_nnunet.conversion.sources.dicom import list_dicom
from ctnet_nnunet.errors import DataError
from tests.conversion.fake_dicom import write_enhanced, write_series
from tests.conversion.fakes import SHARED, all_points, files_under, label_like, run, scan, values_at, write
from tests.conversion.test_geometry import rotation

needs_dcm2niix = pytest.mark.skipif(dicom_pixels.find_dcm2niix() is None, reason="needs dcm2niix")
needs_data = pytest.mark.skipif(not (SHARED / "dicom_mr").is_dir(), reason="needs ../shared/data/dicom_mr")


def volume(seed: int = 0) -> sitk.Image:
    image = sitk.Cast(scan(seed), sitk.sitkInt16)
    image.SetDirection((0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0))  # sagittal
    return image


def refused(root: Path, **options: object) -> str:
    """The reason why the one case of ``root`` is refused, at listing or at conversion."""
    listing = list_dicom(root, "*", [], None, **options)  # type: ignore[arg-type]
    report = run(listing, root.parent / "out")
    assert not report.written
    (reason,) = report.refused.values()
    assert "\n" not in reason
    return reason


def test_patients_sites_and_labels_and_no_id_is_written(tmp_path: Path) -> None:
    for case, patient in (("a1", "SECRET-7"), ("a2", "SECRET-7"), ("b1", "SECRET-8")):
        write_series(volume(), tmp_path / "in" / case, PatientID=patient, PatientName="Mustermann^Erika")
    write(label_like(volume()), tmp_path / "labels/a1.nii.gz")
    write(label_like(volume()), tmp_path / "labels/nobody.nii.gz")
    listing = list_dicom(tmp_path / "in", "*", [], tmp_path / "labels")
    report = run(listing, tmp_path / "out", reorient=True)
    assert [(c.name, c.destination) for c in report.written] == [("a1", "Tr"), ("a2", "Un"), ("b1", "Un")]
    assert listing.cases[0].patient == listing.cases[1].patient != listing.cases[2].patient
    assert list(report.refused) == [(tmp_path / "labels/nobody.nii.gz").as_posix()]
    for content in files_under(tmp_path / "out").values():
        assert b"SECRET" not in content
        assert b"Mustermann" not in content


def test_channels_by_description(tmp_path: Path) -> None:
    for case in ("p1", "p2", "p3"):
        write_series(volume(1), tmp_path / case / "study", seed=1, SeriesDescription="T1 MPRAGE sag")
        if case != "p2":
            write_series(volume(2), tmp_path / case / "study", seed=2, SeriesDescription="t2_flair_sag")
    write_series(volume(2), tmp_path / "p3" / "study", seed=3, SeriesDescription="FLAIR again")
    listing = list_dicom(tmp_path, "*", ["T1=mprage", "FLAIR=flair"], None)
    assert [(c.name, len(c.images)) for c in listing.cases] == [("p1", 2)]
    assert "lacks the channel FLAIR; its series: 'T1 MPRAGE sag' (5 files)" in listing.refused["p2"]
    assert "has 2 series for the channel FLAIR" in listing.refused["p3"]


def test_a_folder_that_is_one_case_and_deeper_folders(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "site/patient7")
    assert [c.name for c in list_dicom(tmp_path / "site/patient7", "*", [], None).cases] == ["patient7"]
    assert [c.name for c in list_dicom(tmp_path, "*/*", [], None).cases] == ["site_patient7"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no DICOM image"):
        list_dicom(tmp_path / "empty", "*", [], None)


def test_mixed_series_in_one_folder(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "in/a", seed=0)
    write_series(volume(), tmp_path / "in/a", seed=1, SeriesDescription="localizer")
    reason = refused(tmp_path / "in")
    assert "a: holds 2 series: 't1 mprage' (5 files), 'localizer' (5 files)" in reason


def test_mixed_orientations_in_one_series(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(volume(), tmp_path / "in/a", seed=0, SeriesInstanceUID=uid)
    write_series(sitk.Cast(scan(), sitk.sitkInt16), tmp_path / "in/a", seed=1, SeriesInstanceUID=uid)
    assert "mixes 2 slice orientations" in refused(tmp_path / "in")


def test_mixed_sizes(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(volume(), tmp_path / "in/a", seed=0, SeriesInstanceUID=uid)
    larger = sitk.ConstantPad(volume(), (1, 0, 0), (1, 0, 0))
    write_series(larger, tmp_path / "in/a", seed=1, SeriesInstanceUID=uid)
    assert "mixes slices of 7×6, 9×6 pixels" in refused(tmp_path / "in")


@pytest.mark.parametrize(("degrees", "straight"), [(0.01, True), (15.0, False)])
def test_gantry_tilt(tmp_path: Path, degrees: float, straight: bool) -> None:
    image = sitk.Cast(scan(), sitk.sitkInt16)
    shift = np.tan(np.radians(degrees)) * image.GetSpacing()[2]
    origin = image.GetOrigin()
    tilted = [[origin[0], origin[1] + shift * k, origin[2] + 2.0 * k] for k in range(image.GetSize()[2])]
    write_series(image, tmp_path / "in/a", ImagePositionPatient=tilted)
    if straight:
        assert run(list_dicom(tmp_path / "in", "*", [], None), tmp_path / "out").exit_status == 0
    else:
        assert "gantry tilt of 15.0°" in refused(tmp_path / "in")


def test_a_missing_slice(tmp_path: Path) -> None:
    files = write_series(volume(), tmp_path / "in/a")
    files[2].unlink()
    reason = refused(tmp_path / "in")
    assert "irregular slice gaps, 4 mm between" in reason
    assert files[1].name in reason
    assert files[3].name in reason


def test_echoes_at_one_position(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(volume(), tmp_path / "in/a", seed=0, SeriesInstanceUID=uid, EchoTime=4.9)
    write_series(volume(), tmp_path / "in/a", seed=1, SeriesInstanceUID=uid, EchoTime=7.4)
    assert "several slices at one position: 2 echoes" in refused(tmp_path / "in")


def test_one_slice_needs_a_thickness(tmp_path: Path) -> None:
    flat = sitk.Cast(scan(size=(7, 6, 1)), sitk.sitkInt16)
    write_series(flat, tmp_path / "in/a", SliceThickness=None)
    assert "one slice of unknown thickness" in refused(tmp_path / "in")
    write_series(flat, tmp_path / "thick/a")
    report = run(list_dicom(tmp_path / "thick", "*", [], None), tmp_path / "out")
    assert report.outcomes["a"].spacing[2] == 2.0


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImageOrientationPatient"])
def test_missing_geometry(tmp_path: Path, keyword: str) -> None:
    write_series(volume(), tmp_path / "in/a", **{keyword: None})
    assert keyword in refused(tmp_path / "in")


@pytest.mark.parametrize("where", ["pixels", "header"])
def test_a_file_that_is_cut_off(tmp_path: Path, where: str) -> None:
    files = write_series(volume(), tmp_path / "in/a")
    raw = files[3].read_bytes()
    files[3].write_bytes(raw[:-50] if where == "pixels" else raw[:300])
    assert files[3].name in refused(tmp_path / "in")


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "in/a")
    (tmp_path / "in/a/notes.txt").write_text("nothing")
    (tmp_path / "in/a/README").write_bytes(b"")
    assert run(list_dicom(tmp_path / "in", "*", [], None), tmp_path / "out").exit_status == 0


def test_a_colour_image(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "in/a", SamplesPerPixel=3)
    assert "colour" in refused(tmp_path / "in")


def test_scaling_that_changes_from_slice_to_slice(tmp_path: Path) -> None:
    image = volume()
    slopes = [0.5, 1.0, 1.25, 2.0, 3.0]
    write_series(image, tmp_path / "in/a", RescaleSlope=slopes, RescaleIntercept=-3)
    run(list_dicom(tmp_path / "in", "*", [], None), tmp_path / "out")
    written = sitk.ReadImage(str(tmp_path / "out/Dataset501_Test/imagesUn/a_0000.nii.gz"))
    scaled = sitk.GetArrayFromImage(image) * np.array(slopes)[:, None, None] - 3
    expected = sitk.GetImageFromArray(scaled.astype(np.float32))
    expected.CopyInformation(image)
    assert values_at(written, all_points(image)) == values_at(expected, all_points(image))


@pytest.mark.parametrize(("tag", "value"), [("ImageType", ["ORIGINAL", "MOSAIC"]), ("NumberOfFrames", 4)])
def test_without_dcm2niix_there_is_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, value: object
) -> None:
    monkeypatch.setattr(dicom_pixels.shutil, "which", lambda *_, **__: None)
    tags = {tag: value} if tag == "NumberOfFrames" else {"ImageType": [value] * 5}
    write_series(volume(), tmp_path / "in/a", **tags)
    if tag == "NumberOfFrames":
        for file in (tmp_path / "in/a").iterdir():  # as many pixels as frames promise
            data = pydicom.dcmread(file)
            data.PixelData = data.PixelData * 4
            data.save_as(file)
    assert "pip install dcm2niix" in refused(tmp_path / "in")


@needs_dcm2niix
def test_enhanced_files_straight_oblique_and_left_handed(tmp_path: Path) -> None:
    made = {}
    for seed in range(6):
        image = sitk.Cast(scan(seed, (12, 10, 9)), sitk.sitkInt16)
        if seed:
            image.SetDirection((rotation(seed) * ((1, 1, -1) if seed % 2 else (1, 1, 1))).ravel().tolist())
        made[f"c{seed}"] = image
        write_enhanced(image, tmp_path / f"in/c{seed}/image.dcm")
    report = run(list_dicom(tmp_path / "in", "*", [], None), tmp_path)
    assert report.refused == {}
    for name, image in made.items():
        written = sitk.ReadImage(str(tmp_path / f"Dataset501_Test/imagesUn/{name}_0000.nii.gz"))
        assert values_at(written, all_points(image)) == values_at(image, all_points(image))
        assert report.outcomes[name].notes == (f"{name}: a multi-frame (enhanced) file, read by dcm2niix",)


def test_the_command(tmp_path: Path) -> None:
    write_series(volume(), tmp_path / "in/good")
    files = write_series(volume(), tmp_path / "in/gap")
    files[2].unlink()
    line = [sys.executable, "-m", "ctnet_nnunet.cli.main", "convert", "dicom", str(tmp_path / "in")]
    line += ["-d", "4", "-n", "Series", "-o", str(tmp_path), "-np", "0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 in imagesUn, 1 refused" in done.stdout
    (message,) = done.stderr.splitlines()
    assert message.startswith("ctnet: refused gap: gap: irregular slice gaps")


@needs_data
def test_a_real_oblique_series_agrees_with_itk(tmp_path: Path) -> None:
    folder = SHARED / "dicom_mr/knee_sag_mese_echo1_anon"
    report = run(list_dicom(folder, "*", [], None), tmp_path)
    assert report.exit_status == 0
    written = sitk.ReadImage(str(tmp_path / f"Dataset501_Test/imagesUn/{report.written[0].name}_0000.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reference = reader.Execute()
    points = [
        reference.TransformIndexToPhysicalPoint((i, j, k)) for i in (3, 200) for j in (7, 150) for k in (0, 11, 23)
    ]
    assert values_at(written, points) == values_at(reference, points)


@needs_data
@needs_dcm2niix
def test_real_mosaics_of_one_head_in_three_planes(tmp_path: Path) -> None:
    listing = list_dicom(SHARED / "dicom_mr", "*asc36", [], None, 0)
    report = run(listing, tmp_path)
    assert report.exit_status == 0
    read = {
        c.name: sitk.ReadImage(str(tmp_path / f"Dataset501_Test/imagesUn/{c.name}_0000.nii.gz")) for c in report.written
    }
    assert len(read) == 3
    axial = sitk.Cast(read["axasc36"], sitk.sitkFloat32)
    for name in ("corasc36", "sagasc36"):  # the same head at the same place: far more alike than its mirror image
        other = sitk.Resample(sitk.Cast(read[name], sitk.sitkFloat32), axial)
        inside = sitk.GetArrayFromImage(other) > 0
        a, b = sitk.GetArrayFromImage(axial), sitk.GetArrayFromImage(other)
        mirrored = sitk.GetArrayFromImage(sitk.Resample(sitk.Cast(read[name], sitk.sitkFloat32), axial))[:, ::-1]
        assert np.corrcoef(a[inside], b[inside])[0, 1] > 0.7
        assert np.corrcoef(a[inside], b[inside])[0, 1] > np.corrcoef(a[inside], mirrored[inside])[0, 1] + 0.1


@needs_data
@needs_dcm2niix
def test_a_time_series_wants_a_choice(tmp_path: Path) -> None:
    listing = list_dicom(SHARED / "dicom_mr", "axasc36", [], None)
    report = run(listing, tmp_path)
    assert "holds 2 volumes (a time series); choose one with --volume" in report.refused["axasc36"]


@pytest.mark.skipif(not (SHARED / "abdomen/example_ct_dicom").is_dir(), reason="needs ../shared/data/abdomen")
def test_a_real_ct_and_its_label_map_stored_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/ct").symlink_to((SHARED / "abdomen/example_ct_dicom").resolve())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/ct.nii.gz").symlink_to((SHARED / "abdomen/example_seg_dicom.nii.gz").resolve())
    listing = list_dicom(tmp_path / "in", "*", ["CT=body"], tmp_path / "labels")
    assert (
        "stored as LAS and not as LPS"
        in run(listing, tmp_path, label_map="5=liver", others_background=True).refused["ct"]
    )
    report = run(listing, tmp_path, label_map="5=liver", others_background=True, reorient=True)
    assert report.exit_status == 0
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "Dataset501_Test/imagesTr/ct_0000.nii.gz")))
    liver = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "Dataset501_Test/labelsTr/ct.nii.gz"))) == 1
    assert 20 < np.median(image[liver]) < 160  # Hounsfield units of a liver, with contrast or without
    assert np.nonzero(liver)[2].mean() > image.shape[2] / 2  # RAS: on the patient's right
