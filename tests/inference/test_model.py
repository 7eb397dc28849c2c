"""Model folders: what loads, and that nothing out of one is run or imported."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctnet_nnunet.errors import CheckpointError, CTNetError, DataError, PlanError
from ctnet_nnunet.inference.model import load_model


def change(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_folds_weights_and_mirrors(model_folder: Path) -> None:
    model = load_model(model_folder)
    assert model.folds == ("0", "1")
    assert (model.channels, model.mirror_axes, model.file_ending) == (1, (1,), ".nii.gz")
    first = torch.load(model_folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(value, first[key]) for key, value in model.network.state_dict().items())
    assert load_model(model_folder, ["1"]).folds == ("1",)
    assert len(set(model.hashes.values())) == 2


def test_fold_all_is_no_member_of_the_cross_validation(model_folder: Path) -> None:
    (model_folder / "fold_all").mkdir()
    (model_folder / "fold_all" / "checkpoint_final.pth").write_bytes(
        (model_folder / "fold_0" / "checkpoint_final.pth").read_bytes()
    )
    assert load_model(model_folder).folds == ("0", "1")
    assert load_model(model_folder, ["all"]).folds == ("all",)


def test_a_unet_plan_with_the_weights_of_a_ctnet_is_translated(model_folder: Path) -> None:
    """nnUNetTrainerCTNet on a stock plan: plans.json holds the U-Net, the checkpoint the CTNet that came of it."""
    from ctnet_nnunet.architectures.from_plan import as_unet

    def to_unet(plans: dict[str, Any]) -> None:
        configuration = plans["configurations"]["3d_fullres"]
        configuration["architecture"] = as_unet(configuration["architecture"])

    change(model_folder / "plans.json", to_unet)
    assert load_model(model_folder).network.transformer is not None


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["architecture"].update(network_class_name="os.system"), "os.system"),
        (lambda c: c["architecture"]["arch_kwargs"].update(conv_op="torch.hub.load"), "torch.hub.load"),
        (lambda c: c.update(preprocessor_name="Evil"), "Evil"),
        (lambda c: c.update(normalization_schemes=["Evil"]), "Evil"),
        (lambda c: c.update(resampling_fn_probabilities="evil"), "evil"),
        (lambda c: c.pop("spacing"), "spacing"),
        (lambda c: c["architecture"]["arch_kwargs"].update(features_per_stage=[4, 8]), "CTNet"),
    ],
)
def test_plans_that_name_what_they_may_not(model_folder: Path, edit: Callable[[Any], Any], words: str) -> None:
    change(model_folder / "plans.json", lambda plans: edit(plans["configurations"]["3d_fullres"]))
    with pytest.raises(PlanError, match=words):
        load_model(model_folder)


def test_a_reader_of_another_package_is_refused(model_folder: Path) -> None:
    change(model_folder / "plans.json", lambda plans: plans.update(image_reader_writer="Evil"))
    with pytest.raises(PlanError, match="Evil"):
        load_model(model_folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "run"))


def test_a_checkpoint_that_would_run_code_does_not(model_folder: Path, tmp_path: Path) -> None:
    file, target = model_folder / "fold_1" / "checkpoint_final.pth", tmp_path / "was_run"
    torch.save({"network_weights": {}, "bomb": Bomb(target)}, file)
    with pytest.raises(CheckpointError, match="Python objects"):
        load_model(model_folder)
    file.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(CheckpointError):
        load_model(model_folder)
    assert not target.exists()


def test_broken_and_foreign_folders(model_folder: Path, tmp_path: Path) -> None:
    def refused(
        error: type[CTNetError], words: str, folds: list[str] | None = None, folder: Path | None = None
    ) -> None:
        with pytest.raises(error, match=words):
            load_model(folder or model_folder, folds)

    refused(DataError, "missing", folder=tmp_path / "none")
    refused(CheckpointError, "no such checkpoint", ["4"])
    other = torch.load(model_folder / "fold_1" / "checkpoint_final.pth", weights_only=True)
    key = next(iter(other["network_weights"]))
    other["network_weights"][key] = torch.zeros(3)
    torch.save(other, model_folder / "fold_1" / "checkpoint_final.pth")
    refused(CheckpointError, "do not belong together")
    other["init_args"] = {"configuration": "2d_none"}
    torch.save(other, model_folder / "fold_1" / "checkpoint_final.pth")
    refused(CheckpointError, "2d_none", ["1"])
    (model_folder / "plans.json").write_text("{")
    refused(DataError, "no valid JSON")
    for file in model_folder.rglob("*.pth"):
        file.unlink()
    (model_folder / "plans.json").write_text("{}")
    refused(CheckpointError, "no fold_")
