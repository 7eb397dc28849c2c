"""Bundles: the same bytes, the same prediction, and one line for whatever is wrong with one."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ctnet_nnunet.errors import CheckpointError, CTNetError, PlanError
from ctnet_nnunet.inference.export import export_model
from ctnet_nnunet.inference.model import load_model
from tests.end_to_end.tiny import Tiny
from tests.inference.test_run import predict

Members = dict[str, bytes]


@pytest.fixture
def bundle(model_folder: Path, tmp_path: Path) -> Path:
    export_model(model_folder, tmp_path / "model.ctnet")
    return tmp_path / "model.ctnet"


def read(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(file: Path, members: Members, sealed: bool = True, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a bundle; ``sealed`` makes the manifest fit again."""
    if sealed:
        manifest = json.loads(members["manifest.json"])
        others = {name: data for name, data in members.items() if name != "manifest.json"}
        manifest["members"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in others.items()
        }
        members = {**others, "manifest.json": json.dumps(manifest).encode()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_the_same_model_gives_the_same_bytes(model_folder: Path, bundle: Path, tmp_path: Path) -> None:
    export_model(model_folder, tmp_path / "again.ctnet")
    export_model(bundle, tmp_path / "of_the_bundle.ctnet")
    assert (
        bundle.read_bytes()
        == (tmp_path / "again.ctnet").read_bytes()
        == (tmp_path / "of_the_bundle.ctnet").read_bytes()
    )
    assert sorted(read(bundle)) == [
        "dataset.json", "fold_0.safetensors", "fold_1.safetensors", "manifest.json", "model.json", "plans.json",
    ]  # fmt: skip


def test_a_bundle_holds_what_the_folder_held(model_folder: Path, bundle: Path) -> None:
    folder, file = load_model(model_folder), load_model(bundle)
    assert (file.folds, file.trainer, file.mirror_axes) == (folder.folds, folder.trainer, folder.mirror_axes)
    assert (file.plans.plans, file.dataset_json) == (folder.plans.plans, folder.dataset_json)
    for mine, theirs in zip(file.weights, folder.weights, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert load_model(bundle, ["1"]).folds == ("1",)
    with pytest.raises(CheckpointError, match="has no fold 7; its folds are 0, 1"):
        load_model(bundle, ["7"])


def test_labels_keep_their_order(model_folder: Path, tmp_path: Path) -> None:
    """A region-based network's outputs are in the order of dataset.json's labels."""
    dataset = json.loads((model_folder / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "z": 1, "a": 2}
    (model_folder / "dataset.json").write_text(json.dumps(dataset))
    export_model(model_folder, tmp_path / "model.ctnet")
    assert list(load_model(tmp_path / "model.ctnet").dataset_json["labels"]) == ["background", "z", "a"]


def test_tensors_of_two_names_are_stored_once(bundle: Path) -> None:
    stored = sum(value.nbytes for value in {v.data_ptr(): v for v in load_model(bundle).weights[0].values()}.values())
    assert len(read(bundle)["fold_0.safetensors"]) < 1.2 * stored
    keys = load_model(bundle).weights[0]
    assert any(key.startswith("decoder.encoder.") for key in keys)


def test_prediction_is_the_folder_s_to_the_bit(
    model_folder: Path, bundle: Path, tiny_for_models: Tiny, tmp_path: Path
) -> None:
    scan = sorted((tiny_for_models.raw / "imagesTr").iterdir())[0]
    shutil.copy(scan, tmp_path / "scan.nii.gz")
    for name, model in (("folder", model_folder), ("bundle", bundle)):
        status, _ = predict("-i", tmp_path / "scan.nii.gz", "-o", tmp_path / name, "-m", model)
        assert status == 0
    images = [sitk.ReadImage(str(tmp_path / name / "scan.nii.gz")) for name in ("folder", "bundle")]
    assert np.array_equal(*map(sitk.GetArrayFromImage, images))
    volumes = [(tmp_path / name / "volumes.csv").read_text() for name in ("folder", "bundle")]
    assert volumes[0] == volumes[1]
    record = json.loads((tmp_path / "bundle" / "run.json").read_text())
    assert set(record["model"]["sha256"]) == {"manifest.json", "fold_0.safetensors", "fold_1.safetensors"}


def test_the_training_s_fingerprint_travels_with_it(model_folder: Path, tmp_path: Path) -> None:
    fingerprint = {"spacings": [[1.0, 1.0, 1.0]], "shapes_after_crop": [[20, 28, 24]]}
    (model_folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    export_model(model_folder, tmp_path / "model.ctnet")
    found = load_model(tmp_path / "model.ctnet").extras["dataset_fingerprint.json"]
    assert {key: found[key] for key in fingerprint} == fingerprint


def test_nothing_is_written_over(model_folder: Path, bundle: Path) -> None:
    before = bundle.read_bytes()
    bundle.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already"):
        export_model(model_folder, bundle)
    assert bundle.read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match="could not be written"):
        export_model(model_folder, bundle.parent / "none" / "model.ctnet")
    export_model(model_folder, bundle, force=True)
    assert bundle.read_bytes() == before
    assert [path.name for path in bundle.parent.glob(".*")] == []


def change_json(name: str, edit: Callable[[Any], Any]) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        content = json.loads(members[name])
        edit(content)
        members[name] = json.dumps(content).encode()

    return change


@pytest.mark.parametrize(
    ("change", "sealed", "error", "words"),
    [
        (lambda m: m.update({"fold_1.safetensors": m["fold_0.safetensors"]}), False, CheckpointError, "SHA-256"),
        (lambda m: m.pop("fold_1.safetensors"), False, CheckpointError, "lacks fold_1"),
        (lambda m: m.pop("fold_1.safetensors"), True, CheckpointError, "its folds are not those"),
        (lambda m: m.update({"hook.py": b""}), True, CheckpointError, "hook.py', which is no part"),
        (lambda m: m.update({"../plans.json": b""}), True, CheckpointError, "no part of a bundle"),
        (lambda m: m.update({"fold_2.safetensors": b""}), False, CheckpointError, "manifest does not name"),
        (change_json("manifest.json", lambda c: c.update(version=2)), False, CheckpointError, "format version 2"),
        (change_json("manifest.json", lambda c: c.update(format="x")), False, CheckpointError, "format"),
        (change_json("model.json", lambda c: c.update(mirror_axes=[7])), True, CheckpointError, "mirror_axes"),
        (change_json("model.json", lambda c: c.update(run="me")), True, CheckpointError, "run: extra"),
        (
            change_json("plans.json", lambda c: c["configurations"]["3d_fullres"]["architecture"].update(
                network_class_name="os.system")), True, PlanError, "os.system",
        ),
        (lambda m: m.update({"fold_0.safetensors": b"\xff" * 64}), True, CheckpointError, "no safetensors"),
    ],
)  # fmt: skip
def test_what_is_refused(
    bundle: Path, change: Callable[[Members], Any], sealed: bool, error: type[CTNetError], words: str
) -> None:
    members = read(bundle)
    change(members)
    write(bundle, members, sealed)
    with pytest.raises(error, match=words) as caught:
        load_model(bundle)
    assert "\n" not in str(caught.value)


def test_other_archives(bundle: Path) -> None:
    members = read(bundle)
    write(bundle, members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(bundle)
    buffer = io.BytesIO()
    torch.save({"network_weights": {}}, buffer)
    bundle.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="no part of a bundle"):
        load_model(bundle)
    write(bundle, {"manifest.json": members["manifest.json"], **members}, sealed=False)
    bundle.write_bytes(bundle.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is no bundle"):
        load_model(bundle)
