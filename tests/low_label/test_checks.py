"""What is refused before a comparison trains anything, and one file under one name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ctnet_nnunet.benchmark.steps import UNET, Workload, architecture_of
from ctnet_nnunet.cli.main import app
from ctnet_nnunet.errors import CheckpointError, DataError, PlanError, SetupError
from ctnet_nnunet.files import sha256
from ctnet_nnunet.folder_lock import folder_lock, is_locked
from ctnet_nnunet.low_label.arms import select
from ctnet_nnunet.low_label.cases import Draw
from ctnet_nnunet.low_label.checks import check_arms, refuse_leaks
from ctnet_nnunet.low_label.experiment import FILE_NAME, Experiment, Settings, UnlabelledScans, open_experiment
from ctnet_nnunet.unlabeled.records import SUFFIXES, describe_input, preprocessing_hash, write_record
from ctnet_nnunet.unlabeled.target import Target
from tests.low_label.test_plans import SETTINGS

SIZE = (32, 32)
FLAT: dict[str, Any] = {
    "patch_size": list(SIZE), "spacing": [1.0, 1.0], "batch_size": 2, "data_identifier": "x_2d",
    "architecture": architecture_of(UNET, Workload(SIZE, features_base=4)),
    # What is hashed to tell whose plans preprocessed a scan.
    "preprocessor_name": "P", "normalization_schemes": [], "use_mask_for_norm": [],
    **dict.fromkeys(("resampling_fn_data", "resampling_fn_seg"), "f"),
    **{name: {} for name in ("resampling_fn_data_kwargs", "resampling_fn_seg_kwargs")},
}  # fmt: skip
PLANS = {
    "plans_name": "P", "transpose_forward": [0, 1, 2], "configurations": {"2d": FLAT}, "image_reader_writer": "R",
    "foreground_intensity_properties_per_channel": {},
}  # fmt: skip
OF_2D = replace(SETTINGS, configuration="2d")
ALL, ONE = Draw(3, 1, ("a", "b", "c")), Draw(1, 1, ("b",))


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A dataset of the pool a, b, c, the test case t and the left-out case o, with nothing preprocessed in imagesUn."""
    raw = tmp_path / "raw"
    for name in ("imagesTr", "imagesUn"):
        (raw / name).mkdir(parents=True)
    for case in "abcto":
        (raw / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(case.encode() * 100)
    labels = {"background": 0, "one": 1}
    dataset_json = {"labels": labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
    return Target("Dataset501_X", "2d", raw, tmp_path / "x_2d_unlabeled", PLANS, dataset_json, "0")


def check(target: Target, *arms: str, settings: Settings = OF_2D, draws: tuple[Draw, ...] = (ONE,)) -> None:
    check_arms(target, FLAT, settings, select(arms, {}), draws)


def test_left_out_cases_may_be_in_no_pretraining_either(target: Target) -> None:
    refuse_leaks(target, OF_2D, ["o"])
    scan = target.images_un / "other_0000.nii.gz"
    scan.write_bytes(b"o" * 100)
    refuse_leaks(target, OF_2D, [])
    with pytest.raises(DataError, match="is left-out case o under another name"):
        refuse_leaks(target, OF_2D, ["o"])
    scan.rename(target.images_un / "o_0000.nii.gz")
    with pytest.raises(DataError, match="is a left-out case"):
        refuse_leaks(target, OF_2D, ["o"])
    (target.images_un / "o_0000.nii.gz").rename(target.images_un / "t_0000.nii.gz")
    with pytest.raises(DataError, match="is a test case"):
        refuse_leaks(target, OF_2D, ["o"])


def test_a_removed_copy_is_found_where_it_lies_preprocessed(target: Target) -> None:
    """Removing it from imagesUn alone would change nothing."""
    scan = target.images_un / "other_0000.nii.gz"
    scan.write_bytes(b"t" * 100)
    preprocessed(target, scan)
    with pytest.raises(DataError, match=r"is test case t under another name; .* run ctnet preprocess-unlabeled again"):
        refuse_leaks(target, OF_2D, [])
    scan.unlink()
    with pytest.raises(DataError, match=r"other in .* is the same file as t_0000.nii.gz, a test case; "):
        refuse_leaks(target, OF_2D, [])


def test_a_test_case_is_found_wherever_dataset_json_says_its_image_is(target: Target) -> None:
    (target.raw / "imagesTr" / "t_0000.nii.gz").rename(target.raw / "t.nii.gz")
    listed = replace(target, dataset_json={**target.dataset_json, "dataset": {"t": {"images": ["t.nii.gz"]}}})
    (target.images_un / "other_0000.nii.gz").write_bytes(b"t" * 100)
    with pytest.raises(DataError, match="is test case t under another name"):
        refuse_leaks(listed, OF_2D, [])


def test_a_scan_of_a_test_patient_is_refused(target: Target) -> None:
    (target.images_un / "t2_0000.nii.gz").write_bytes(b"2")
    refuse_leaks(target, OF_2D, [])
    with pytest.raises(DataError, match="t2 is of the patient of test case t, and is pretrained on"):
        refuse_leaks(target, replace(OF_2D, patient_pattern=r"(\D)"), [])


def test_unlabelled_scans_that_are_not_preprocessed_are_refused_with_a_command_that_works(target: Target) -> None:
    (target.images_un / "u_0000.nii.gz").write_bytes(b"u")
    check(target, "unet-adamw")
    with pytest.raises(DataError, match=r"arm unet\+volf: .* not preprocessed; run ctnet preprocess-unlabeled .* -p "):
        check(target, "unet-adamw", "unet+volf")


def preprocessed(target: Target, scan: Path) -> None:
    """What preprocessing leaves behind for a scan of imagesUn."""
    target.folder.mkdir(exist_ok=True)
    case = scan.name.split("_0000")[0]
    for suffix in SUFFIXES:
        (target.folder / f"{case}{suffix}").write_bytes(b"")
    write_record(target.folder, case, preprocessing_hash(target.plans, FLAT), [describe_input(scan)])


def test_a_study_cut_out_of_a_left_out_case_is_refused_and_its_own_slices_are_not(target: Target) -> None:
    plane = {"ipp": [0, 0, 0], "iop": [1, 0, 0, 0, 1, 0], "pixel_spacing": [1, 1]}

    def write(cases: list[str]) -> None:
        stack = {"cases": cases, "shape": [1, 4, 4], "planes": [plane]}
        study = {"frame_of_reference": "1", "group": "o", "stacks": {"SAX": stack}}
        (target.folder / "planes.json").write_text(json.dumps({"studies": {"o-r0": study}}))

    target.folder.mkdir()
    write(["o"])
    refuse_leaks(target, OF_2D, ["o"])
    write(["o-r0__SAX"])
    refuse_leaks(target, OF_2D, [])
    with pytest.raises(DataError, match="study o-r0 is of the left-out case o"):
        refuse_leaks(target, OF_2D, ["o"])


def test_an_arm_of_imaging_planes_without_planes_json(target: Target) -> None:
    with pytest.raises(DataError, match=r"arm planes: .*planes.json: does not exist"):
        check(target, "unet-adamw", "planes")
    target.folder.mkdir()
    (target.folder / "planes.json").write_text("{}")
    check(target, "unet-adamw", "planes")


@pytest.mark.parametrize("arm", ["unet-reciprocal", "unet-mean-teacher"])
def test_an_arm_that_needs_unlabelled_scans_where_there_are_none(target: Target, arm: str) -> None:
    with pytest.raises(DataError, match=f"arm {arm}: --labels 3 labels every case of the pool"):
        check(target, arm, draws=(ONE, ALL))
    check(target, arm, draws=(ONE,))
    check(target, "unet-twin", draws=(ALL,))
    scan = target.images_un / "u_0000.nii.gz"  # these arms do not read imagesUn
    scan.write_bytes(b"u")
    preprocessed(target, scan)
    with pytest.raises(DataError, match="so none is left to learn from"):
        check(target, arm, draws=(ONE, ALL))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fusion_pair": "batch", "batch_size": 1}, "fusion_pair: batch needs 2 scans"),
        ({"fusion_pair": "batch", "volf": {"batch_size": 1}}, "fusion_pair: batch needs 2 scans"),
        ({"fusion_block_max": 0.8}, "fusion_block_max: the largest blocks leave 1"),
    ],
)
def test_options_that_volume_fusion_cannot_do(target: Target, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=rf"arm unet\+volf: .*{words}"):
        check(target, "unet+volf", settings=replace(OF_2D, options=options))
    check(target, "unet+volf", settings=replace(OF_2D, options={"fusion_pair": "batch"}))


@pytest.mark.parametrize("weights", [{1: torch.zeros(2)}, {"encoder": 3}, [1]])
def test_weights_of_a_users_checkpoint_that_are_none(target: Target, tmp_path: Path, weights: Any) -> None:
    file = tmp_path / "own.pth"
    torch.save({"network_weights": weights}, file)
    with pytest.raises(CheckpointError, match=r"own\.pth: its network_weights"):
        check_arms(target, FLAT, OF_2D, select([], {"own": str(file)}), [ONE])


def test_a_name_stands_for_one_file(tmp_path: Path) -> None:
    one, other, folder = tmp_path / "1.pth", tmp_path / "2.pth", tmp_path / "out"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    folder.mkdir()
    open_experiment(folder, SETTINGS, {"a": sha256(one)}).save()
    assert open_experiment(folder, SETTINGS, {}).checkpoints == {"a": sha256(one)}
    added = open_experiment(folder, SETTINGS, {"a": sha256(one), "b": sha256(other)})
    assert added.checkpoints == {"a": sha256(one), "b": sha256(other)}
    with pytest.raises(SetupError, match=r"--checkpoint a: .*another file under this name"):
        open_experiment(folder, SETTINGS, {"a": sha256(other)})


def test_pretrainings_of_one_comparison_read_the_same_scans(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    experiment = open_experiment(folder, SETTINGS, {})
    none, scan = UnlabelledScans.of(target.folder), target.images_un / "u_0000.nii.gz"
    assert none.count == 0
    experiment.read_unlabelled(none)
    experiment.save()
    scan.write_bytes(b"u")
    preprocessed(target, scan)
    one = UnlabelledScans.of(target.folder)
    assert one.count == 1 and one == UnlabelledScans.of(target.folder)
    gone_on = open_experiment(folder, SETTINGS, {})
    gone_on.read_unlabelled(none)
    with pytest.raises(SetupError, match=r"pretrainings read 0 scans of imagesUn \(\w+\), now 1 scan of imagesUn"):
        gone_on.read_unlabelled(one)
    scan.write_bytes(b"another")
    preprocessed(target, scan)
    assert UnlabelledScans.of(target.folder) != one


def test_a_comparison_from_before_checkpoints_were_recorded_goes_on(tmp_path: Path) -> None:
    Experiment(tmp_path, SETTINGS, [ONE]).save()
    content = json.loads((tmp_path / FILE_NAME).read_text())
    del content["checkpoints"], content["unlabelled"]
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    gone_on = open_experiment(tmp_path, SETTINGS, {"a": "0"})
    assert (gone_on.draws, gone_on.checkpoints) == ([ONE], {"a": "0"})


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(SetupError, match=r"notes\.txt: cannot be made a folder"), folder_lock(file):
        pass
    assert file.read_text() == "mine"
    assert not is_locked(tmp_path)


def test_a_seed_that_numpy_does_not_take(tmp_path: Path) -> None:
    words = ["benchmark", "low-label", "-d", "501", "--out", str(tmp_path / "out"), "--labels", "1"]
    words += ["--iterations", "1", "--pretrain-iterations", "1", "--seed", str(2**32)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and str(2**32 - 1) in result.output
    assert not (tmp_path / "out").exists()
