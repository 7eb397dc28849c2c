"""``ctnet convert planes``: DICOM, NIfTI, volumes; what lies where, what is refused and why."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from ctnet_nnunet.cli.main import app
from ctnet_nnunet.conversion.planes.convert import (
    PlanesRequest,
    convert_studies,
    describe_labelled,
    reslice_studies,
)
from ctnet_nnunet.conversion.planes.reslice import Reslicing, reslice_volume
from ctnet_nnunet.conversion.planes.stacks import in_canonical_order, parse_roles, role_of, slices_last
from ctnet_nnunet.conversion.planes.write import Roles
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.image_check import read_image_header
from ctnet_nnunet.planes.geometry import disagreement, intersection, plane_from_dicom, planes_of_grid
from ctnet_nnunet.planes.sidecar import read_sidecar
from tests.conversion.fake_dicom import write_enhanced, write_series
from tests.conversion.plane_studies import ROLES, request, stack, views, write_dicom
from tests.planes.oblique import rotation


def test_dicom_the_written_image_and_planes_json_agree(tmp_path: Path) -> None:
    images = views()
    write_dicom(tmp_path / "in" / "p1", images)
    report = convert_studies(tmp_path / "in", request(tmp_path))
    assert report.exit_status == 0, report.refused
    dataset = tmp_path / "Dataset501_Heart"
    sidecar = read_sidecar(dataset / "planes.json")
    assert (sidecar.hosts, sidecar.guests) == (("SAX",), ("2CH", "4CH"))
    study = sidecar.studies["p1"]
    assert len(study.frame_of_reference) == 16 and "1.2.3" not in (dataset / "planes.json").read_text()
    for name, image in images.items():
        entry = study.stacks[name.upper()]
        file = dataset / "imagesUn" / f"{entry.cases[0]}_0000.nii.gz"
        header = read_image_header(file)
        written = planes_of_grid(header.size, header.spacing, header.origin, header.direction)
        assert disagreement(written, entry.stack, entry.shape[1:]) < 1e-3
        # Every voxel keeps its value at its place in the patient, whatever the order of the axes.
        read, source = sitk.ReadImage(str(file)), sitk.GetArrayViewFromImage(image)
        place = read.TransformIndexToPhysicalPoint((1, 2, 0))
        i, j, k = image.TransformPhysicalPointToIndex(place)
        assert read.GetPixel(1, 2, 0) == source[k, j, i] and source.max() > 255
        plane = entry.stack[0]
        assert np.allclose(plane.points(2.0, 1.0), place, atol=1e-3)


def test_the_planes_are_those_of_the_headers_to_a_millionth_of_a_mm(tmp_path: Path) -> None:
    images = views(1)
    write_dicom(tmp_path / "in" / "p1", images)
    convert_studies(tmp_path / "in", request(tmp_path))
    study = read_sidecar(tmp_path / "Dataset501_Heart" / "planes.json").studies["p1"]
    for name, image in images.items():
        turned = in_canonical_order(image)
        grid = (turned.GetSize(), turned.GetSpacing(), turned.GetOrigin(), turned.GetDirection())
        entry = study.stacks[name.upper()]
        assert disagreement(planes_of_grid(*grid), entry.stack, entry.shape[1:]) < 1e-6


def test_cine_frames_are_ordered_by_trigger_time(tmp_path: Path) -> None:
    image = views()["sax"]
    folder = tmp_path / "in" / "p1"
    for time in (200.0, 0.0, 100.0):
        moved = image + int(10000 + time)
        write_series(
            moved, folder / f"t{time}", int(time), SeriesDescription="sax", TriggerTime=time, SeriesInstanceUID="1.9"
        )
    report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("SAX",))))
    assert report.written == {"p1": "SAX 5 slices × 3 frames"}
    images = tmp_path / "Dataset501_Heart" / "imagesUn"
    means = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))).mean() for file in sorted(images.iterdir())]
    assert [file.name[:12] for file in sorted(images.iterdir())] == ["p1__SAX__f00", "p1__SAX__f01", "p1__SAX__f02"]
    assert np.diff(means) == pytest.approx([100, 100])


def test_slices_stored_as_a_series_each_are_one_stack(tmp_path: Path) -> None:
    image = views()["sax"]
    for k in range(5):
        write_series(image[:, :, k : k + 1], tmp_path / "in" / "p1" / f"sax_{k}", k, SeriesDescription=f"sax_{k}")
    report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("SAX",))))
    assert report.written == {"p1": "SAX 5 slices"}, report.refused


def test_an_enhanced_file_is_read_by_its_frames(tmp_path: Path) -> None:
    image = views()["sax"]
    write_enhanced(image, tmp_path / "in" / "p1" / "enhanced.dcm")
    report = convert_studies(tmp_path / "in", request(tmp_path, patterns=("enh=SAX",), roles=Roles(guests=("SAX",))))
    assert report.written == {"p1": "SAX 5 slices"}, report.refused
    file = next((tmp_path / "Dataset501_Heart" / "imagesUn").iterdir())
    expected = sitk.GetArrayFromImage(in_canonical_order(image))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), expected)


def test_nifti_folders_and_4d_cine(tmp_path: Path) -> None:
    images, folder = views(), tmp_path / "in" / "p1"
    folder.mkdir(parents=True)
    for name in ("2ch", "4ch"):
        sitk.WriteImage(images[name], str(folder / f"{name}.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([images["sax"], images["sax"] + 5]), str(folder / "sax.nii.gz"))
    report = convert_studies(tmp_path / "in", request(tmp_path))
    assert report.written == {"p1": "2CH 1 slice, 4CH 1 slice, SAX 5 slices × 2 frames"}, report.refused
    flat = convert_studies(folder, request(tmp_path / "b", patterns=(".*=SAX",), study_pattern="(.+)ch"))
    assert set(flat.written) == {"2", "4"}


@pytest.mark.parametrize("seed", range(3))
def test_canonical_order_moves_no_voxel_and_is_that_of_ras_scans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = stack(rng, (6, 5, 4), rotation(rng))
    turned = in_canonical_order(image)
    assert turned.GetSize()[2] == 4
    for index in ((0, 0, 0), (2, 1, 3)):
        point = turned.TransformIndexToPhysicalPoint(index)
        assert turned.GetPixel(index) == image.GetPixel(image.TransformPhysicalPointToIndex(point))
    axial = stack(rng, (6, 5, 4), np.eye(3))
    assert in_canonical_order(axial).GetDirection() == sitk.DICOMOrient(axial, "RAS").GetDirection()


def test_the_slice_axis_is_the_one_of_the_largest_spacing() -> None:
    image = sitk.Image(6, 5, 4, sitk.sitkInt16)
    for axis in range(3):
        spacing = [1.0, 1.2, 1.1]
        spacing[axis] = 6.0
        image.SetSpacing(spacing)
        assert slices_last(image).GetSpacing()[2] == 6.0
    single = sitk.Image(1, 5, 4, sitk.sitkInt16)
    assert slices_last(single).GetSize() == (5, 4, 1)


class TestRefusals:
    def refused(self, tmp_path: Path, **changes: Any) -> dict[str, str]:
        return convert_studies(tmp_path / "in", request(tmp_path, **changes)).refused

    def test_another_frame_of_reference(self, tmp_path: Path) -> None:
        images = views()
        write_series(images["sax"], tmp_path / "in/p1/a", 0, SeriesDescription="sax", FrameOfReferenceUID="1.2")
        write_series(images["2ch"], tmp_path / "in/p1/b", 1, SeriesDescription="2ch", FrameOfReferenceUID="1.3")
        write_series(images["4ch"], tmp_path / "in/p1/c", 2, SeriesDescription="4ch", FrameOfReferenceUID="1.2")
        refused = self.refused(tmp_path, roles=Roles(guests=("4CH",)))
        assert list(refused) == ["p1: 2ch"] and "another frame of reference than sax" in refused["p1: 2ch"]

    @pytest.mark.parametrize("fault", ["tilt", "gap"])
    def test_a_tilted_or_irregular_stack_makes_no_image_but_a_guest_keeps_its_planes(
        self, fault: str, tmp_path: Path
    ) -> None:
        images = views()
        axes = np.array(images["sax"].GetDirection()).reshape(3, 3)
        long_axis = stack(np.random.default_rng(4), (9, 10, 4), axes[:, [1, 2, 0]])
        places = [np.array(long_axis.TransformIndexToPhysicalPoint((0, 0, k))) for k in range(4)]
        for k, place in enumerate(places):
            step = axes[:, 1] * 2.0 * k if fault == "tilt" else axes[:, 0] * 3.0 * (k > 2)
            places[k] = place + step
        write_series(images["sax"], tmp_path / "in/p1/a", 0, SeriesDescription="sax")
        positions = [place.tolist() for place in places]
        write_series(long_axis, tmp_path / "in/p1/b", 1, SeriesDescription="2ch", ImagePositionPatient=positions)
        report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("2CH",))))
        words = "gantry tilt" if fault == "tilt" else "irregular slice gaps"
        assert words in report.refused["p1: 2ch"] and report.exit_status == 1
        assert report.written == {"p1": "SAX 5 slices, 2CH 4 slices (planes alone)"}
        study = read_sidecar(report.dataset / "planes.json").studies["p1"]
        guest = study.stacks["2CH"].stack[2]
        assert np.allclose(guest.position, places[2], atol=1e-6)
        assert intersection(study.stacks["SAX"].stack[0], guest) is not None

    def test_a_parallel_guest_is_said(self, tmp_path: Path) -> None:
        images = views()
        write_dicom(tmp_path / "in" / "p1", {"sax": images["sax"], "2ch": images["sax"]})
        report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("2CH",))))
        assert any("guest 2CH is parallel to SAX" in note for note in report.notes)

    def test_a_guest_that_no_study_has_changes_nothing(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in" / "p1", {"sax": views()["sax"]})
        with pytest.raises(DataError, match="guest '3CH': no study has this role"):
            self.refused(tmp_path, roles=Roles(guests=("3CH",)))
        assert not (tmp_path / "Dataset501_Heart").exists()

    def test_reserved_names_unfitting_series_repeats_and_empty_folders(self, tmp_path: Path) -> None:
        images = views()
        write_dicom(tmp_path / "in" / "good", {**images, "scout": images["2ch"]})
        write_dicom(tmp_path / "in" / "a__b", images)
        write_series(images["sax"], tmp_path / "in/twice/a", 0, SeriesDescription="sax", InstanceNumber=1)
        write_series(images["sax"], tmp_path / "in/twice/b", 1, SeriesDescription="sax", InstanceNumber=1)
        (tmp_path / "in" / "empty").mkdir()
        report = convert_studies(tmp_path / "in", request(tmp_path))
        assert list(report.written) == ["good"]
        assert "no --role fits" in report.refused["good: scout"]
        assert "__ is" in report.refused["a__b"] or "reserved" in report.refused["a__b"]
        assert "nothing tells their times apart" in report.refused["twice: sax"]
        assert "no DICOM or NIfTI" in report.refused["empty"]

    def test_a_mosaic_names_the_way_out(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in" / "p1", views(), ImageType="ORIGINAL\\PRIMARY\\M\\MOSAIC")
        report = convert_studies(tmp_path / "in", request(tmp_path))
        assert report.exit_status == 2
        assert "dcm2niix" in report.refused["p1: sax"] and "NIfTI" in report.refused["p1: sax"]

    def test_a_damaged_file_is_named_and_the_study_goes_on(self, tmp_path: Path) -> None:
        write_dicom(tmp_path / "in" / "p1", views())
        file = next((tmp_path / "in/p1/2ch").iterdir())
        file.write_bytes(file.read_bytes()[:-40])
        report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("4CH",))))
        assert report.written == {"p1": "4CH 1 slice, SAX 5 slices"} or report.written == {
            "p1": "SAX 5 slices, 4CH 1 slice"
        }
        (reason,) = report.refused.values()
        assert "copy it again" in reason and file.name in "".join([*report.refused, reason])

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["in"], "--role"),
            (["in", "--role", "sax"], "REGEX=ROLE"),
            (["in", "--role", "(=SAX"], "regular expression"),
            (["nowhere", "--role", "sax=SAX"], "no such folder"),
            ([], "one of SOURCE"),
            (["in", "--reslice", "in"], "one of SOURCE"),
            (["--reslice", "in", "--scheme", "knee"], "no such scheme"),
            (["--labelled", "SAX"], "holds no scan"),
        ],
    )
    def test_bad_requests(
        self, words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "in").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=expected):
            CliRunner().invoke(app, ["convert", "planes", *words, "-o", "x/Dataset501_A"], catch_exceptions=False)
        assert not (tmp_path / "x" / "Dataset501_A").exists()

    def test_bad_names_of_the_dataset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(DataError, match="Dataset501_Heart"):
            describe_labelled("SAX", PlanesRequest(tmp_path / "Heart", Roles()))
        monkeypatch.delenv("nnUNet_raw")
        with pytest.raises(SetupError, match="nnUNet_raw"):
            describe_labelled("SAX", PlanesRequest(Path("Dataset501_A"), Roles()))


def test_roles_are_found_whatever_the_case_of_letters() -> None:
    patterns = parse_roles(["cine.*sax=SAX", "lax=2CH"])
    assert role_of(patterns, "CINE_tf_SAX_12") == "SAX"
    assert role_of(patterns, "scout") == ""
    with pytest.raises(DataError, match="2CH, SAX"):
        role_of(patterns, "cine sax", "lax")


def test_studies_are_added_and_replaced_only_when_asked(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "p1", views())
    convert_studies(tmp_path / "in", request(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "Dataset501_Heart").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="has the study p1 already; --force"):
        convert_studies(tmp_path / "in", request(tmp_path))
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.glob(".*"))
    report = convert_studies(tmp_path / "in", request(tmp_path, force=True))
    assert list(report.written) == ["p1"]
    assert {path: path.read_bytes() for path in before} == before, "the same study gives the same bytes"
    write_dicom(tmp_path / "more" / "p2", views(2))
    convert_studies(tmp_path / "more", request(tmp_path))
    assert list(read_sidecar(tmp_path / "Dataset501_Heart" / "planes.json").studies) == ["p1", "p2"]


class TestReslice:
    def volume(self, tmp_path: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
        """A volume whose values are a linear function of the place in the patient."""
        image = sitk.Image(48, 44, 40, sitk.sitkFloat32)
        image.SetSpacing(spacing)
        image.SetOrigin((12.0, -31.0, 5.0))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        z, y, x = np.meshgrid(*(np.arange(n) for n in (40, 44, 48)), indexing="ij")
        points = np.stack([12.0 - x, -31.0 - y, 5.0 + z], -1)
        made = sitk.GetImageFromArray((points @ np.array([1.0, 2.0, -3.0])).astype(np.float32))
        made.CopyInformation(image)
        sitk.WriteImage(made, str(tmp_path / "v1_0000.nii.gz"))
        return tmp_path / "v1_0000.nii.gz"

    @pytest.mark.parametrize("scheme", ["cardiac", "head", "orthogonal"])
    def test_every_pixel_shows_the_volume_at_its_place(self, scheme: str, tmp_path: Path) -> None:
        (study,) = reslice_volume("v1", self.volume(tmp_path), Reslicing(scheme, seed=4), 0, 10**6)
        for item in study.stacks:
            array = sitk.GetArrayViewFromImage(item.frames[0])
            rows, columns = np.meshgrid(*(np.arange(float(n)) for n in array.shape[1:]), indexing="ij")
            for k, plane in enumerate(item.planes):
                expected = plane.points(rows, columns) @ np.array([1.0, 2.0, -3.0])
                # No pixel lies outside of the volume, where the resampler would write 0.
                assert np.abs(array[k] - expected).max() < 1e-2
        host = study.stacks[0]
        for guest in study.stacks[1:]:
            line = intersection(host.planes[len(host.planes) // 2], guest.planes[0])
            assert line is not None and line.passes(host.shape[1:], 2.0)

    def test_orthogonal_guests_lie_along_the_patient_s_axes_through_the_volume_s_centre(self, tmp_path: Path) -> None:
        (study,) = reslice_volume("v1", self.volume(tmp_path), Reslicing("orthogonal"), 0, 10**6)
        host, coronal, sagittal = study.stacks
        assert [item.role for item in study.stacks] == ["AX", "COR", "SAG"]
        assert np.allclose(np.abs(coronal.planes[0].normal), [0, 1, 0], atol=1e-12)
        assert np.allclose(np.abs(sagittal.planes[0].normal), [1, 0, 0], atol=1e-12)
        # The centre of 48 × 44 × 40 voxels of 1 mm from (12, -31, 5), the first two axes against the patient's.
        assert coronal.planes[0].position[1] == pytest.approx(-31 - 21.5)
        assert sagittal.planes[0].position[0] == pytest.approx(12 - 23.5)
        assert len(host.planes) > 1 and 0.9 < abs(host.planes[0].normal[2]) < 1, "the host alone is tilted"

    def test_a_shipped_hippocampus_volume(self, tmp_path: Path) -> None:
        folder = files("ctnet_nnunet.demo") / "data" / "images"
        with as_file(folder) as images:
            file = min(images.glob("*.nii.gz"))
            how = Reslicing("head", gap=3.0)
            report = reslice_studies(file, how, PlanesRequest(tmp_path / "Dataset505_Hippocampus", Roles()))
            assert report.exit_status == 0, report.refused
            volume = sitk.DICOMOrient(sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32), "RAS")
        ((name, study),) = read_sidecar(report.dataset / "planes.json").studies.items()
        image = sitk.ReadImage(str(report.dataset / "imagesUn" / f"{name}__AX_0000.nii.gz"))
        host = study.stacks["AX"].stack
        index = (3, 2, len(host) // 2)
        place = host[index[2]].points(float(index[1]), float(index[0]))
        shown = sitk.Resample(volume, image[index[0] : index[0] + 1, index[1] : index[1] + 1, index[2] : index[2] + 1])
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), place, atol=1e-3)
        assert image.GetPixel(index) == pytest.approx(shown.GetPixel(0, 0, 0), abs=0.5)
        assert all(intersection(host[index[2]], study.stacks[role].stack[0]) is not None for role in ("COR", "SAG"))

    def test_hosts_are_tilted_at_random_and_guests_are_not(self, tmp_path: Path) -> None:
        file = self.volume(tmp_path)
        first, second = reslice_volume("v1", file, Reslicing("head", repeat=2), 0, 10**6)
        assert (first.name, second.name, first.group, second.group) == ("v1-r0", "v1-r1", "v1", "v1")
        assert first.stacks[0].planes[0].columns != second.stacks[0].planes[0].columns
        assert first.stacks[1].planes == second.stacks[1].planes
        again = reslice_volume("v1", file, Reslicing("head", repeat=2), 0, 10**6)[0]
        assert again.stacks[0].planes == first.stacks[0].planes

    def test_refusals(self, tmp_path: Path) -> None:
        file = self.volume(tmp_path, (1.0, 1.0, 4.0))
        report = reslice_studies(tmp_path, Reslicing("head"), PlanesRequest(tmp_path / "Dataset502_A", Roles()))
        assert report.exit_status == 2 and "differ by no more than" in report.refused["v1"]
        small = sitk.ReadImage(str(file))[:9, :9, :3]
        small.SetSpacing((1, 1, 1))
        sitk.WriteImage(small, str(file))
        with pytest.raises(DataError, match="too small"):
            reslice_volume("v1", file, Reslicing("head"), 0, 10**6)


def test_labelled_scans_are_entered_without_an_image_written(tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset503_A"
    (dataset / "imagesTr").mkdir(parents=True)
    for name in ("p1_es", "p1_ed", "p2_es"):
        sitk.WriteImage(views()["sax"], str(dataset / "imagesTr" / f"{name}_0000.nii.gz"))
    report = describe_labelled("SAX", PlanesRequest(dataset, Roles(), study_pattern=r"(p\d)"))
    assert list(report.written) == ["p1_ed", "p1_es", "p2_es"] and report.images == 0
    sidecar = read_sidecar(dataset / "planes.json")
    assert sidecar.group_of("p1_ed") == sidecar.group_of("p1_es") == "p1"
    assert not (dataset / "imagesUn").exists()
    with pytest.raises(DataError, match="p1_ed already"):
        describe_labelled("SAX", PlanesRequest(dataset, Roles()))
    with pytest.raises(DataError, match="does not fit the case"):
        describe_labelled("SAX", PlanesRequest(dataset, Roles(), study_pattern="(q)", force=True))


def test_the_command_prints_studies_notes_and_refusals(tmp_path: Path) -> None:
    write_dicom(tmp_path / "in" / "p1", {**views(), "scout": views()["2ch"]})
    words = ["convert", "planes", str(tmp_path / "in"), "-o", str(tmp_path / "Dataset501_Heart")]
    done = CliRunner().invoke(app, [*words, *(w for role in ROLES for w in ("--role", role))])
    assert done.exit_code == 1
    assert "1 studies, 3 images in imagesUn, 1 refused" in done.output
    assert json.loads((tmp_path / "Dataset501_Heart" / "planes.json").read_text())["version"] == 1


def test_official_pitfall_row_spacing_comes_first(tmp_path: Path) -> None:
    """PixelSpacing[0] is the distance of rows; swapped, a plane's pixels would lie elsewhere."""
    image = views()["sax"]
    (file, *_) = write_series(image, tmp_path, 0)
    import pydicom

    header = pydicom.dcmread(file)
    plane = plane_from_dicom(header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing)
    assert np.allclose(plane.points(7.0, 3.0), image.TransformIndexToPhysicalPoint((3, 7, 0)), atol=1e-6)
