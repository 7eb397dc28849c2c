"""``ctnet transfer`` on plans of a few lines: nnssl's layouts, the number of input channels, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.benchmark.steps import RESENC, Workload, architecture_of
from ctnet_nnunet.errors import CheckpointError, CTNetError, DataError, PlanError
from ctnet_nnunet.planning.transfer import transfer_checkpoint
from ctnet_nnunet.planning.transfer_target import target_network

SIZE = (16, 16, 16)
NAME = "Dataset547_Transfer"
VOCO = {
    "key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem",
    "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
}  # fmt: skip
BYOL = {"key_to_encoder": "online_encoder.stages", "key_to_stem": "online_encoder.stem"}


def plans() -> dict[str, Any]:
    block = {
        "patch_size": list(SIZE), "spacing": [1.0, 1.0, 1.0], "batch_size": 2, "data_identifier": "x",
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": architecture_of(RESENC, Workload(SIZE, features_base=4)),
    }  # fmt: skip
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return {
        "dataset_name": NAME, "plans_name": "P", "transpose_forward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {"3d_fullres": block, "3d_cascade_fullres": cascade},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed folder with a ResEnc plan ``P`` and dataset.json, and nothing else."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / NAME
    folder.mkdir()
    (folder / "P.json").write_text(json.dumps(plans()))
    labels = {"background": 0, "one": 1, "two": 2}
    (folder / "dataset.json").write_text(
        json.dumps({"labels": labels, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"})
    )
    return folder


def _resenc() -> nn.Module:
    torch.manual_seed(5)
    return network_from_plan(architecture_of(RESENC, Workload(SIZE, features_base=4)), 1, 3, True)


def _save(file: Path, weights: Any, plan: Any = None) -> Path:
    torch.save({"network_weights": weights} | ({} if plan is None else {"nnssl_adaptation_plan": plan}), file)
    return file


@pytest.mark.parametrize(("prefix", "plan"), [("encoder.", VOCO), ("online_encoder.", BYOL)])
@pytest.mark.parametrize("repeated", [True, False])
def test_nnssl_checkpoints_fill_the_encoder_that_stock_loads(
    folder: Path, tmp_path: Path, prefix: str, plan: dict[str, Any], repeated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _resenc()
    weights: dict[str, Tensor] = {
        key: value for key, value in source.encoder.state_dict(prefix=prefix).items() if repeated or "all_" not in key
    }
    file = _save(tmp_path / "ssl.pth", {**weights, "projector.0.weight": torch.ones(3, 3)}, plan)
    out = tmp_path / "w.pth"
    transfer_checkpoint(file, NAME, "P", "3d_fullres", out, "nnUNetTrainer")
    started = target_network(NAME, "P", "3d_fullres", "nnUNetTrainer").network
    fresh = copy.deepcopy(started)
    load_pretrained_weights(started, str(out))
    capsys.readouterr()
    for key, value in started.encoder.state_dict().items():
        assert torch.equal(value, source.encoder.state_dict()[key]), key
    assert torch.equal(started.decoder.stages[0].convs[0].conv.weight, fresh.decoder.stages[0].convs[0].conv.weight)


def test_a_cascade_reads_the_labels_of_the_stage_before_as_channels(folder: Path) -> None:
    network, images = target_network(NAME, "P", "3d_cascade_fullres", "nnUNetTrainer")
    assert (network.encoder.stem.convs[0].conv.in_channels, images) == (3, 1)
    network, images = target_network(NAME, "P", "3d_fullres", "nnUNetTrainer")
    assert (network.encoder.stem.convs[0].conv.in_channels, images) == (1, 1)


def test_in_a_cascade_the_image_gives_the_same_features_and_labels_none_yet(folder: Path, tmp_path: Path) -> None:
    source, out = _resenc(), tmp_path / "w.pth"
    file = _save(tmp_path / "source.pth", source.state_dict())
    transfer_checkpoint(file, NAME, "P", "3d_cascade_fullres", out, "nnUNetTrainer")
    network = target_network(NAME, "P", "3d_cascade_fullres", "nnUNetTrainer").network
    load_pretrained_weights(network, str(out))
    image, labels = torch.randn(1, 1, *SIZE), torch.ones(1, 2, *SIZE)
    for mine, theirs in zip(
        network.eval().encoder(torch.cat([image, labels], 1)), source.eval().encoder(image), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_cascade_is_carried_into_itself_and_three_images_are_no_image_with_labels(
    folder: Path, tmp_path: Path
) -> None:
    cascade = target_network(NAME, "P", "3d_cascade_fullres", "nnUNetTrainer").network
    weights = {key: value + 1 for key, value in cascade.state_dict().items()}
    file, out = tmp_path / "source.pth", tmp_path / "w.pth"
    for channels, action in ((1, "loaded"), (3, "adapted")):
        names = {str(channel): "MR" for channel in range(channels)}
        torch.save({"network_weights": weights, "init_args": {"dataset_json": {"channel_names": names}}}, file)
        result = transfer_checkpoint(file, NAME, "P", "3d_cascade_fullres", out, "nnUNetTrainer", force=True)
        (row,) = [row for row in result.rows if row.key == "encoder.stem.convs.0.conv.weight"]
        assert row.action == action
        assert bool(result.state[row.key][:, 1:].any()) is (action == "loaded")


@pytest.mark.parametrize(
    ("weights", "plan", "words"),
    [
        ({1: torch.zeros(2)}, None, "'1', which is no name with a tensor"),
        ({"a": 3}, None, "'a', which is no name with a tensor"),
        ([1, 2], None, "no table of tensors"),
        ({"encoder.x": torch.tensor([1.0, float("nan")])}, None, "encoder.x holds numbers that are not finite"),
        ({"encoder.x": torch.zeros(2)}, ["encoder"], "nnssl_adaptation_plan does not name the encoder"),
        ({"encoder.x": torch.zeros(2)}, {"key_to_encoder": 3}, "nnssl_adaptation_plan does not name the encoder"),
    ],
)
def test_checkpoints_that_are_refused(folder: Path, tmp_path: Path, weights: Any, plan: Any, words: str) -> None:
    file, out = _save(tmp_path / "bad.pth", weights, plan), tmp_path / "w.pth"
    with pytest.raises(CheckpointError, match=words):
        transfer_checkpoint(file, NAME, "P", "3d_fullres", out)
    assert not out.exists()


def test_a_folder_that_is_not_there_is_named_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nodir: no such folder; create it") as caught:
        transfer_checkpoint(tmp_path / "none.pth", NAME, "P", "3d_fullres", tmp_path / "nodir" / "x.pth")
    assert "--c" not in str(caught.value)


def test_a_file_that_cannot_be_written_has_transfers_own_remedy(folder: Path, tmp_path: Path) -> None:
    file = _save(tmp_path / "full.pth", _resenc().state_dict())
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="choose another -o") as caught:
        transfer_checkpoint(file, NAME, "P", "3d_fullres", tmp_path / "taken", "nnUNetTrainer", force=True)
    assert "--c" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "kind", "words"),
    [
        ("P.json", "{", PlanError, "cannot be read as JSON"),
        ("P.json", "[1]", PlanError, "holds no JSON object"),
        ("P.json", "{}", PlanError, "no configuration '3d_fullres'; it has none"),
        ("P.json", '{"configurations": {"3d_fullres": {}}}', PlanError, "cannot be used"),
        ("P.json", '{"configurations": {"3d_fullres": {"inherits_from": "x"}}}', PlanError, "cannot be used"),
        ("P.json", None, PlanError, r"P\.json: missing; run"),
        ("dataset.json", None, DataError, r"dataset\.json: missing; run"),
        ("dataset.json", "{}", PlanError, "cannot be used"),
    ],
)
def test_plans_that_are_refused(
    folder: Path, file: str, content: str | None, kind: type[CTNetError], words: str
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(kind, match=words) as caught:
        target_network(NAME, "P", "3d_fullres", "nnUNetTrainer")
    assert len(str(caught.value).splitlines()) == 1
