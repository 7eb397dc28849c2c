"""``ctnet convert planes``: slices stay where their headers put them, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ctnet_nnunet.conversion.planes.convert import PlanesRequest, convert_studies, describe_labelled, reslice_studies
from ctnet_nnunet.conversion.planes.reslice import Reslicing
from ctnet_nnunet.conversion.planes.stacks import in_canonical_order, planes_in_canonical_order, planes_of_image
from ctnet_nnunet.conversion.planes.write import Roles
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import disagreement
from ctnet_nnunet.planes.sidecar import read_sidecar
from tests.conversion.fake_dicom import write_series
from tests.conversion.plane_studies import request, stack, views, write_dicom
from tests.planes.oblique import rotation


@pytest.mark.parametrize("seed", range(6))
def test_planes_are_turned_as_their_image_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = stack(rng, (6, 5, 4), rotation(rng))
    turned = planes_in_canonical_order(planes_of_image(image), image)
    assert disagreement(turned, planes_of_image(in_canonical_order(image)), (6, 6)) < 1e-9


@pytest.mark.parametrize("fault", ["shift", "gap"])
def test_slices_off_an_even_grid_are_refused_as_an_image_and_kept_as_a_guest(fault: str, tmp_path: Path) -> None:
    """By 0.4 mm, which a converter of images would let through: the sidecar's planes are those of the headers."""
    images = views()
    axes = np.array(images["sax"].GetDirection()).reshape(3, 3)
    for name, role in (("sax", "host"), ("2ch", "guest")):
        size, turned = ((12, 10, 5), axes) if role == "host" else ((9, 10, 4), axes[:, [1, 2, 0]])
        image = stack(np.random.default_rng(4), size, turned)
        places = [np.array(image.TransformIndexToPhysicalPoint((0, 0, k))) for k in range(size[2])]
        good = [place.tolist() for place in places]
        if fault == "shift":
            places[-1] = places[-1] + 0.4 * turned[:, 0]
        else:
            places[1] = places[1] + 0.1 * turned[:, 2]
        bad = [place.tolist() for place in places]
        for study in ("a", "b"):
            wrong = (study == "a") == (role == "host")
            tags = {"SeriesDescription": name, "ImagePositionPatient": bad if wrong else good}
            write_series(image, tmp_path / "in" / study / name, 0, FrameOfReferenceUID="1.2", **tags)
    report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("2CH",))))
    assert report.written == {"b": "2CH 4 slices (planes alone), SAX 5 slices"}
    assert "mm from where their headers do" in report.refused["a: sax"]
    kept = read_sidecar(report.dataset / "planes.json").studies["b"].stacks["2CH"].stack
    assert np.allclose([plane.position for plane in kept], places, atol=1e-6)


def test_a_guest_in_two_frames_of_reference_keeps_no_planes(tmp_path: Path) -> None:
    images = views()
    axes = np.array(images["sax"].GetDirection()).reshape(3, 3)
    guest = stack(np.random.default_rng(4), (9, 10, 4), axes[:, [1, 2, 0]])
    write_dicom(tmp_path / "in" / "p1", {"sax": images["sax"], "4ch": images["4ch"]})
    uids = ["1.2.3", "1.2.3", "9.9", "9.9"]
    write_series(guest, tmp_path / "in/p1/b", 9, SeriesDescription="2ch", FrameOfReferenceUID=uids)
    report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("4CH",))))
    assert "several frames of reference" in report.refused["p1: 2ch"]
    assert set(read_sidecar(report.dataset / "planes.json").studies["p1"].stacks) == {"SAX", "4CH"}


def test_two_volumes_of_one_study_s_name(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    for channel, value in (("0000", 100), ("0001", 900)):
        array = np.random.default_rng(1).normal(value, 9, (40, 44, 48)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(volumes / f"v1_{channel}.nii.gz"))
    report = reslice_studies(volumes, Reslicing("head"), PlanesRequest(tmp_path / "Dataset502_A", Roles()))
    assert report.exit_status == 1 and list(report.written) == ["v1"]
    assert "'v1' as v1_0000.nii.gz does" in report.refused["v1_0001.nii.gz"]
    first = sitk.ReadImage(str(report.dataset / "imagesUn" / "v1__AX_0000.nii.gz"))
    assert sitk.GetArrayFromImage(first).mean() == pytest.approx(100, abs=1)


def test_a_number_that_is_none_is_refused_before_anything_is_converted() -> None:
    for number in (float("inf"), float("nan"), 0.0):
        with pytest.raises(DataError, match="--sigma"):
            Roles(sigma_mm=number)
        with pytest.raises(DataError, match="--gap"):
            Reslicing("head", gap=number)


class TestLabelled:
    def dataset(self, tmp_path: Path) -> Path:
        folder = tmp_path / "Dataset503_A"
        (folder / "imagesTr").mkdir(parents=True)
        sitk.WriteImage(views()["sax"], str(folder / "imagesTr" / "p7_0000.nii.gz"))
        return folder

    def test_roles_are_judged(self, tmp_path: Path) -> None:
        folder = self.dataset(tmp_path)
        for role in ("S__ X", "", "-A"):
            with pytest.raises(DataError, match="use letters, digits"):
                describe_labelled(role, PlanesRequest(folder, Roles()))
        for roles in (Roles(hosts=("FOO",)), Roles(guests=("FOO",))):
            with pytest.raises(DataError, match="'FOO': no study has this role"):
                describe_labelled("SAX", PlanesRequest(folder, roles))
        assert not (folder / "planes.json").exists()

    def test_a_role_that_is_no_host_is_said(self, tmp_path: Path) -> None:
        folder = self.dataset(tmp_path)
        write_dicom(tmp_path / "in" / "p1", views())
        patterns = ("sax=AX", "2ch=COR", "4ch=SAG")
        convert_studies(tmp_path / "in", PlanesRequest(folder, Roles(("AX",), ("COR", "SAG")), patterns))
        report = describe_labelled("SAX", PlanesRequest(folder, Roles()))
        (note,) = report.notes
        assert "SAX is no host (AX is)" in note and "--host AX --host SAX --force" in note
        again = describe_labelled("SAX", PlanesRequest(folder, Roles(hosts=("AX", "SAX")), force=True))
        assert not again.notes and read_sidecar(folder / "planes.json").hosts == ("AX", "SAX")


class TestWhatIsLeftOut:
    def test_files_that_the_pattern_does_not_fit(self, tmp_path: Path) -> None:
        source = tmp_path / "in"
        write_dicom(source / "folder", {"sax": views()["sax"]})
        for name in ("p1-sax", "p2-sax", "odd"):
            sitk.WriteImage(views()["sax"], str(source / f"{name}.nii.gz"))
        write_series(views()["sax"], source, 0)
        (source / "notes.txt").write_text("not a scan")
        report = convert_studies(source, request(tmp_path, study_pattern="(p.)-", roles=Roles(guests=("SAX",))))
        assert list(report.written) == ["p1", "p2"] and report.exit_status == 1
        assert "--study-pattern does not fit" in report.refused["odd.nii.gz"]
        assert "is a folder" in report.refused["folder"]
        (dicom,) = [name for name in report.refused if name.endswith("and 4 more")]
        assert "DICOM" in report.refused[dicom] and "notes.txt" not in str(report.refused)

    def test_files_beside_the_studies_and_dicom_beside_nifti(self, tmp_path: Path) -> None:
        source = tmp_path / "in"
        write_dicom(source / "p1", {"sax": views()["sax"], "scout": views()["2ch"]})
        write_dicom(source / "p2", {"sax": views()["sax"], "2ch": views()["2ch"]})
        sitk.WriteImage(views()["sax"], str(source / "p2" / "old_sax.nii.gz"))
        sitk.WriteImage(views()["sax"], str(source / "p9_sax.nii.gz"))
        (source / "README").write_text("not a scan")
        report = convert_studies(source, request(tmp_path, roles=Roles(guests=("SAX",))))
        assert list(report.written) == ["p1", "p2"]
        assert set(report.refused) == {"p9_sax.nii.gz", "p1: scout", "p2: sax", "p2: 2ch"}
        assert "not read" in report.refused["p9_sax.nii.gz"] and "also holds NIfTI" in report.refused["p2: sax"]

    def test_folders_of_one_name(self, tmp_path: Path) -> None:
        for name in ("p 1", "p_1"):
            write_dicom(tmp_path / "in" / name, {"sax": views()["sax"]})
        report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("SAX",))))
        assert len(report.written) == 1 and "as another folder does" in report.refused["p_1"]

    def test_what_was_refused_is_named_where_a_role_is_missing_for_it(self, tmp_path: Path) -> None:
        images = views()
        write_dicom(tmp_path / "in" / "p1", {"sax": images["sax"], "scout": images["2ch"]})
        with pytest.raises(
            DataError, match=r"guest '2CH': no study has this role.* p1: scout: no --role fits it"
        ) as error:
            convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("2CH",))))
        assert "\n" not in str(error.value)

    def test_series_without_a_frame_of_reference(self, tmp_path: Path) -> None:
        images = views()
        for number, (name, image) in enumerate(images.items()):
            for study in ("none", "some"):
                tags = {"FrameOfReferenceUID": "1.2"} if study == "some" and name != "2ch" else {}
                write_series(image, tmp_path / "in" / study / name, number, SeriesDescription=name, **tags)
        report = convert_studies(tmp_path / "in", request(tmp_path))
        assert "none: its series name no frame of reference and are taken to lie in one" in report.notes
        assert "one of them names none" in report.refused["some: 2ch"]

    def test_an_incomplete_cine_series(self, tmp_path: Path) -> None:
        image = views()["sax"]
        for time, part in ((0.0, image), (100.0, image[:, :, :4])):
            tags = {"SeriesDescription": "sax", "TriggerTime": time, "SeriesInstanceUID": "1.9"}
            write_series(part, tmp_path / "in" / "p1" / f"t{time}", int(time), **tags)
        report = convert_studies(tmp_path / "in", request(tmp_path, roles=Roles(guests=("SAX",))))
        assert "has 1 to 2 frames at its positions" in report.refused["p1: sax"]
