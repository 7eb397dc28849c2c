"""``ctnet predict`` with a fusion of pairs: scans without a pair in every format, bundles, OpenVINO."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from ctnet_nnunet.errors import CheckpointError, DataError
from tests.conversion.fake_dicom import write_series
from tests.inference.fusion_model import write_fusion
from tests.inference.test_run import predict

CMFF, CMFT = "nnUNetTrainerCMFF", "nnUNetTrainerCMFT"
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # what DICOM is turned to, so that every format gives one image
DICOM_CHOICES = ("T1=t1$", "T1c=post", "T2=t2", "FLAIR=flair")
DESCRIPTIONS = ("ax t1", "ax t1 post", "ax t2", "ax flair")
BIDS_CHOICES = ("T1=T1w,ce=", "T1c=T1w,ce=gd", "T2=T2w", "FLAIR=FLAIR")
SUFFIXES = ("T1w", "ce-gd_T1w", "T2w", "FLAIR")
FORMATS = ("files", "dicom", "bids", "zipped dicom", "zipped bids")


@dataclass(frozen=True)
class Models:
    """Trained with modality dropout, trained without, and the first stage."""

    fuses_alone: Path
    fuses_both: Path
    generators: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("fusion")
    return Models(
        write_fusion(root / "a" / f"{CMFF}__P__3d_fullres", CMFF, modality_dropout=0.2),
        write_fusion(root / "b" / f"{CMFF}__P__3d_fullres", CMFF),
        write_fusion(root / "c" / f"{CMFT}__P__3d_fullres", CMFT, folds=1),
    )


def sequence(channel: int) -> sitk.Image:
    values = np.random.default_rng(channel).integers(0, 9, (10, 9, 12)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetDirection(RAS)
    return image


def write(root: Path, form: str, channels: tuple[int, ...]) -> tuple[Path, list[str]]:
    """A scan with these channels; returns what to give with ``-i``, and the choice of channels."""
    folder, choices = root / "scans", ()
    study, frame = generate_uid(), generate_uid()
    for channel in channels:
        image, suffix = sequence(channel), SUFFIXES[channel]
        if "dicom" in form:
            tags = {"StudyInstanceUID": study, "FrameOfReferenceUID": frame, "SeriesDescription": DESCRIPTIONS[channel]}
            write_series(image, folder / "study", channel, **tags)
            choices = DICOM_CHOICES
            continue
        file, choices = folder / f"p_{channel:04d}.nii.gz", ()
        if "bids" in form:
            file, choices = folder / "sub-1" / "anat" / f"sub-1_{suffix}.nii.gz", BIDS_CHOICES
        file.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(file))
    source = Path(shutil.make_archive(str(root / "scan"), "zip", folder)) if "zipped" in form else folder
    return source, [word for choice in choices for word in ("--channel", choice)]


def run(root: Path, source: Path, *words: str | Path) -> tuple[NDArray[np.generic], str, dict[str, object]]:
    """Labels of the one case, what was printed, and its entry in the record."""
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    status, text = predict("-i", source, "-o", out, "--speed", "best", *words)
    assert status == 0, text
    (file,) = out.rglob("*.nii.gz")
    (case,) = json.loads((out / "run.json").read_text())["cases"].values()
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))), text, case


@pytest.fixture(scope="module")
def expected(models: Models, tmp_path_factory: pytest.TempPathFactory) -> list[NDArray[np.generic]]:
    """Labels of a scan without T2 and FLAIR in nnU-Net's naming: by the fusion, by the branch, of a synthesis."""
    root = tmp_path_factory.mktemp("expected")
    source, _ = write(root, "files", (0, 1))
    return [run(root, source, "--engine", "torch", *words)[0] for words in ways(models)]


def ways(models: Models) -> list[list[str | Path]]:
    return [
        ["-m", models.fuses_alone],
        ["-m", models.fuses_both],
        ["-m", models.fuses_both, "--synthesis", models.generators / "fold_0"],
    ]


SAID = (
    "T2, FLAIR missing: the fusion decides from T1, T1c; check the result",
    "T2, FLAIR missing: its branch alone decides, of T1, T1c; check the result",
    "T2, FLAIR missing: synthesised from T1, T1c by",
)


@pytest.mark.parametrize("form", FORMATS)
def test_a_scan_without_a_pair_in_every_format(
    models: Models, expected: list[NDArray[np.generic]], form: str, tmp_path: Path
) -> None:
    source, choices = write(tmp_path, form, (0, 1))
    for words, said, wanted in zip(ways(models), SAID, expected, strict=True):
        labels, text, case = run(tmp_path, source, *choices, *words, "--engine", "torch")
        assert said in text
        assert sum(said in warning for warning in case["warnings"]) == 1  # type: ignore[attr-defined]
        assert np.array_equal(labels, wanted) and len(np.unique(labels)) > 1
    assert not any(np.array_equal(expected[0], other) for other in expected[1:])
    assert not np.array_equal(expected[1], expected[2])


@pytest.mark.parametrize("form", ["files", "dicom", "zipped bids"])
def test_a_single_sequence_that_is_missing_is_refused_by_name(models: Models, form: str, tmp_path: Path) -> None:
    source, choices = write(tmp_path, form, (0, 2, 3))
    with pytest.raises(DataError) as caught:
        predict("-i", source, "-o", tmp_path / "out", "-m", models.fuses_alone, *choices)
    named = {"files": "channel 0001 is missing", "bids": "lacks the channel T1w,ce=gd"}
    assert named.get(form.split()[-1], "lacks the channel T1c") in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_generators_of_other_pairs_are_refused(models: Models, tmp_path: Path) -> None:
    others = write_fusion(tmp_path / f"{CMFT}__P__3d_fullres", CMFT, folds=1, pairs=[[2, 3], [0, 1]])
    source, _ = write(tmp_path, "files", (0, 1))
    with pytest.raises(CheckpointError) as caught:
        predict("-i", source, "-o", tmp_path / "out", "-m", models.fuses_alone, "--synthesis", others)
    assert "its pairs are [['T2', 'FLAIR'], ['T1', 'T1c']]" in str(caught.value)
    assert "give the first stage of the same data set" in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("channels", [(0, 1, 2, 3), (2, 3)])
def test_a_bundle_gives_the_folders_labels_to_the_bit_and_openvino_the_same(
    models: Models, channels: tuple[int, ...], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from ctnet_nnunet.cli.main import app

    bundle, source = tmp_path / "model.ctnet", write(tmp_path, "files", channels)[0]
    done = CliRunner().invoke(app, ["export", str(models.fuses_alone), "-o", str(bundle), "--openvino"])
    assert done.exit_code == 0, done.output
    generators = [[], ["--synthesis", models.generators]] if len(channels) == 2 else [[]]
    for more in generators:
        folder, text, _ = run(tmp_path, source, "-m", models.fuses_alone, "--engine", "torch", *more)
        assert "× 2 folds" in text and len(np.unique(folder)) > 1
        assert np.array_equal(run(tmp_path, source, "-m", bundle, "--engine", "torch", *more)[0], folder)
        for model in (models.fuses_alone, bundle):
            labels, text, _ = run(tmp_path, source, "-m", model, "--engine", "openvino", *more)
            assert "OpenVINO" not in text
            assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["engine"] == "openvino"
            assert np.mean(labels != folder) < 1e-3
