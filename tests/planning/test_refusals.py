"""What ``write_plan`` refuses: one line with the remedy, and not a byte written or lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctnet_nnunet.errors import CTNetError, DataError, PlanError, SetupError
from ctnet_nnunet.planning.write import write_plan
from tests.planning.conftest import TINY, Dataset


def refused(planned: Dataset, kind: type[CTNetError], *words: str, **arguments: Any) -> str:
    """The line of a refusal; the preprocessed folder must be as it was."""
    arguments = {"dataset": planned.id, "changes": TINY, **arguments}
    before = {name: (planned.preprocessed / name).read_bytes() for name in planned.files()}
    with pytest.raises(kind) as caught:
        write_plan(**arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []
    # nnU-Net's planner copies dataset.json beside the fingerprint; that is no plan.
    after = {name: (planned.preprocessed / name).read_bytes() for name in planned.files()}
    assert after == {"dataset.json": after.get("dataset.json"), **before} or after == before
    return line


@pytest.mark.parametrize("changes", [
    {"epoch": 5}, {"epochs": "many"}, {"architecture.arch_kwargs.wings": 2}, {"batch_dice": "yes"}, {"patch_size": 3},
    {"transformer.heads": 5}, {"pretext.jigsaw": 1}, {"features_base": 0}, {"pretrain": 3},
    {"architecture.network_class_name": "torch.hub.load"}, {"architecture.arch_kwargs.conv_op": "os.system"},
    {"architecture.arch_kwargs.strides": [[1, 1, 1], [32, 2, 2], [2, 2, 2]]}, {"architecture.arch_kwargs.n_stages": 7},
    {"patch_size": [4, 4, 4]}, {"patch_size": [16, 16]}, {"mask_ratio": 1.5},
])  # fmt: skip
def test_bad_changes(dataset: Dataset, changes: dict[str, Any]) -> None:
    refused(dataset, PlanError, configuration="3d_fullres", changes={**TINY, **changes})


def test_an_unknown_preset_lists_the_valid_ones(dataset: Dataset) -> None:
    refused(dataset, PlanError, "'xl'", "s, m, l, identity", preset="xl")


def test_an_unknown_configuration_lists_the_valid_ones(dataset: Dataset) -> None:
    refused(dataset, PlanError, "'3d_lowres'", "2d, 3d_fullres", configuration="3d_lowres")


def test_no_fingerprint(dataset: Dataset) -> None:
    (dataset.preprocessed / "dataset_fingerprint.json").unlink()
    refused(dataset, PlanError, "no fingerprint", "nnUNetv2_extract_fingerprint -d 540")


@pytest.mark.parametrize("name", [999, "999", "plain", "", "../540", "Dataset540_other", "Datasetfoo_plain"])
def test_an_unknown_dataset(dataset: Dataset, name: str | int) -> None:
    refused(dataset, DataError, str(name), "not found in nnUNet_raw", dataset=name)


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_an_unset_folder(dataset: Dataset, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    refused(dataset, SetupError, f"{name} is not set")


def test_raw_data_that_are_gone(dataset: Dataset) -> None:
    for image in (dataset.raw / "imagesTr").iterdir():
        image.unlink()
    refused(dataset, DataError, "imagesTr: missing or empty")
    (dataset.raw / "dataset.json").unlink()
    refused(dataset, DataError, "dataset.json: missing")


def test_broken_json(dataset: Dataset) -> None:
    dataset.file().write_text('{"configurations": ')
    refused(dataset, PlanError, "CTNetPlans.json: no valid JSON", "remove it")
    (dataset.raw / "dataset.json").write_text("{")
    refused(dataset, DataError, "dataset.json: no valid JSON")


def test_two_datasets_of_one_id(dataset: Dataset) -> None:
    (dataset.raw.parent / "Dataset540_other").mkdir()
    refused(dataset, DataError, "several folders have this id")
    assert write_plan(dataset.raw.name, "3d_fullres", changes=TINY).file == dataset.file()


def test_memory_that_holds_no_patch(of_size: Callable[..., Dataset]) -> None:
    refused(of_size((12, 12, 12)), PlanError, "0.0002 GB", "--gpu-memory", "features_base", gpu_memory=0.0002)


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "with space", "CTNetPlans.json", ".hidden"])
def test_a_name_that_is_no_file_name(dataset: Dataset, name: str) -> None:
    refused(dataset, PlanError, "--name", name=name)
    assert not list(dataset.preprocessed.parent.glob("escape*"))


def test_other_planners_files_are_left_alone(dataset: Dataset) -> None:
    refused(dataset, PlanError, "nnUNetPlans", "another planner", name="nnUNetPlans")
    stock = dataset.plans("nnUNetPlans")
    dataset.file("nnUNetResEncUNetMPlans").write_text(
        json.dumps({**stock, "experiment_planner_used": "ResEncUNetPlanner"})
    )
    refused(dataset, PlanError, "nnUNetResEncUNetMPlans", "another planner", name="nnUNetResEncUNetMPlans", force=True)


def test_a_plan_that_models_were_trained_with(dataset: Dataset) -> None:
    write_plan(dataset.id, changes=TINY)
    folder = dataset.train("3d_fullres")
    write_plan(dataset.id, changes=TINY)  # the same again changes nothing
    write_plan(dataset.id, "2d", changes={**TINY, "epochs": 3})  # nor does another configuration
    line = refused(dataset, PlanError, "3d_fullres", "--name", "--force", changes={**TINY, "epochs": 3})
    assert str(folder) in line
    write_plan(dataset.id, changes={**TINY, "epochs": 3}, name="Other")
    write_plan(dataset.id, changes={**TINY, "epochs": 3}, force=True)
    assert dataset.configuration()["ctnet"]["epochs"] == 3


def test_a_disk_that_is_full_leaves_the_old_file(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(dataset.id, "3d_fullres", changes=TINY)
    whole = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        whole(self, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    refused(dataset, PlanError, "could not be written", "No space left", changes={**TINY, "epochs": 9})


def test_a_rename_that_fails_leaves_the_old_file(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(dataset.id, "3d_fullres", changes=TINY)

    def denied(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("ctnet_nnunet.files.os.replace", denied)
    refused(dataset, PlanError, "could not be written", "Permission denied", changes={**TINY, "epochs": 9})


def test_scans_too_small_for_any_patch(of_size: Callable[..., Dataset]) -> None:
    refused(of_size((6, 6, 6)), PlanError, "8 voxels in two axes, or the scans have none")
