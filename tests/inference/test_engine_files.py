"""OpenVINO's files in a bundle: the folder's labels, and what is done where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("openvino", reason="needs the extra [cpu]")

from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.inference.engine import choose_engine
from ctnet_nnunet.inference.engine_files import stored_network
from ctnet_nnunet.inference.engine_openvino import import_without_telemetry
from ctnet_nnunet.inference.export import export_model
from ctnet_nnunet.inference.model import load_model
from tests.bad_files.base import checkpoint, make_good
from tests.inference.test_bundle import read, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of the smallest U-Net."""
    good = make_good(tmp_path_factory.mktemp("good"))
    torch.manual_seed(1)
    other = checkpoint()
    for value in {value.data_ptr(): value for value in other["network_weights"].values()}.values():
        value.add_(0.5 * torch.randn_like(value))
    (good.model / "fold_1").mkdir()
    torch.save(other, good.model / "fold_1" / "checkpoint_final.pth")
    return good.model


@pytest.fixture(scope="module")
def exported(folder: Path) -> bytes:
    export_model(folder, folder.parent / "openvino.ctnet", openvino=True)
    return (folder.parent / "openvino.ctnet").read_bytes()


@pytest.fixture
def bundle(exported: bytes, tmp_path: Path) -> Path:
    (tmp_path / "model.ctnet").write_bytes(exported)
    return tmp_path / "model.ctnet"


def silent(text: str) -> None:
    raise AssertionError(text)


def test_every_fold_s_network_computes_what_pytorch_does(bundle: Path) -> None:
    model = load_model(bundle)
    image = torch.randn(1, 1, *model.configuration.patch_size, generator=torch.Generator().manual_seed(1))
    results = []
    for fold in range(2):
        network = stored_network(model, fold, silent)
        compiled = import_without_telemetry().Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results.append(compiled(image.numpy())[0])
        model.network.load_state_dict(model.weights[fold])
        with torch.inference_mode():
            ours = model.network.eval()(image).numpy()
        assert np.abs(results[fold] - ours).max() < 1e-3 * np.abs(ours).max()
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_the_same_bytes_again_and_none_without_the_option(folder: Path, bundle: Path, tmp_path: Path) -> None:
    export_model(folder, tmp_path / "again.ctnet", openvino=True)
    assert (tmp_path / "again.ctnet").read_bytes() == bundle.read_bytes()
    export_model(bundle, tmp_path / "plain.ctnet")
    assert stored_network(load_model(tmp_path / "plain.ctnet"), 0, silent) is None
    assert stored_network(load_model(folder), 0, silent) is None


def test_the_engine_takes_them_and_converts_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctnet_nnunet.inference.engine_openvino.convert", lambda *_: silent("converted"))
    model = load_model(bundle)
    image = torch.randn(1, 1, *model.configuration.patch_size, generator=torch.Generator().manual_seed(2))
    engine = choose_engine(model, torch.device("cpu"), False, "openvino", silent)
    torch_engine = choose_engine(model, torch.device("cpu"), False, "torch", silent)
    for fold in range(2):
        engine.use_fold(fold)
        torch_engine.use_fold(fold)
        (theirs,), (ours,) = engine.run([image]), torch_engine.run([image])
        assert torch.allclose(theirs, ours, atol=1e-3 * float(ours.abs().max()), rtol=0)


@pytest.mark.parametrize(("key", "value"), [("openvino", "2020.1"), ("input_shape", [1, 1, 9, 9, 9])])
def test_files_for_something_else_are_converted_anew_and_it_is_said(bundle: Path, key: str, value: object) -> None:
    members = read(bundle)
    members["openvino/engine.json"] = json.dumps({**json.loads(members["openvino/engine.json"]), key: value}).encode()
    write(bundle, members)
    said: list[str] = []
    model = load_model(bundle)
    assert stored_network(model, 0, said.append) is None
    assert stored_network(model, 1, said.append) is None
    (line,) = said
    assert line.startswith("WARNING: ") and "converted anew" in line


def test_damaged_files_are_refused(bundle: Path) -> None:
    members = read(bundle)
    write(bundle, {**members, "openvino/fold_1.bin": b"x" + members["openvino/fold_1.bin"][1:]}, sealed=False)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load_model(bundle)
    write(bundle, {**members, "openvino/fold_0.xml": b"<net/>"})
    with pytest.raises(CheckpointError, match="is no network"):
        stored_network(load_model(bundle), 0, silent)
