"""``-pretrained_weights`` under our trainers: stock's loading, behind a safe reading and a comparison."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.trainers.stock_hooks import checked, install, unwrapped
from tests.architectures.plan_table import SMALL, Plan, halvings

PLAN = Plan("plan", (16, 16, 16), halvings(3, 2), 2, (4, 4, 4))
load = checked(load_pretrained_weights)


def network(seed: int, **changes: Any) -> CTNet:
    torch.manual_seed(seed)
    return Plan(**{**vars(PLAN), **changes}).network(SMALL, deep_supervision=True)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "checkpoint_final.pth"
    extra = {"tasks.rotation.head.weight": torch.zeros(3)}  # stock drops what the network does not have
    torch.save({"network_weights": {**network(1).state_dict(), **extra}, "ctnet": {"x": 1}}, path)
    return str(path)


def test_everything_but_the_heads_is_loaded_to_the_bit(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    target, before = network(2), network(2).state_dict()
    load(target, file)
    heads = 0
    for key, value in target.state_dict().items():
        head = ".seg_layers." in key
        heads += head
        assert torch.equal(value, before[key] if head else network(1).state_dict()[key]), key
    out = capsys.readouterr().out
    assert f"{len(before) - heads} tensors from {file}; {heads} of the heads stay new" in out


def test_another_number_of_classes_does_not_matter(file: str) -> None:
    target = network(2, classes=7)
    load(target, file)
    assert torch.equal(target.transformer.position_table, network(1).transformer.position_table)


@pytest.mark.parametrize(("changes", "shown"), [
    ({"channels": 2}, ("4x2x3x3x3", "4x1x3x3x3", "shape differs")),
    ({"features": [4, 8, 16]}, ("16x8x3x3x3", "12x8x3x3x3", "shape differs")),
    ({"strides": halvings(3, 3), "patch": (32, 32, 32)}, ("missing in the file",)),
])  # fmt: skip
def test_weights_of_another_plan_are_refused_with_a_table(
    changes: dict[str, Any], shown: tuple[str, ...], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = network(2, **changes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(SystemExit) as caught:
        load(target, file)
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert out.splitlines()[0].split() == ["key", "wanted", "found", "action"]
    assert all(text in out for text in shown)
    assert "tensor(" not in out + error
    assert len(out.splitlines()) <= 14
    assert error.startswith(f"ctnet: error: {file}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_missing_and_a_hostile_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"network_weights": network(1).state_dict(), "extra": Runs()}, tmp_path / "hostile.pth")
    for name in ("hostile.pth", "missing.pth"):
        with pytest.raises(SystemExit) as caught:
            load(network(2), str(tmp_path / name))
        assert caught.value.code == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what this is about")
def test_weights_saved_on_a_gpu_load_without_one(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu.pth")
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        torch.save({"network_weights": network(1).state_dict()}, path)
    with pytest.raises(RuntimeError, match="CUDA"):
        load_pretrained_weights(network(2), path)  # stock alone
    target = network(2)
    load(target, path)
    assert torch.equal(target.transformer.position_table, network(1).transformer.position_table)


def test_wrappers_are_seen_through(file: str) -> None:
    target = network(2)
    assert unwrapped(target) is target
    assert unwrapped(SimpleNamespace(_orig_mod=target)) is target
    compiled = torch.compile(target)
    load(compiled, file)
    assert torch.equal(target.transformer.position_table, network(1).transformer.position_table)


def test_the_wrapper_is_put_where_the_command_looks_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_training, "load_pretrained_weights", load_pretrained_weights)
    install()
    wrapped = run_training.load_pretrained_weights
    assert wrapped.checks_first
    install()
    assert run_training.load_pretrained_weights is wrapped
    assert inspect.unwrap(wrapped) is load_pretrained_weights


def test_a_loading_leaves_no_file_behind(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(network(2), file)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_final.pth"]


def test_stock_networks_are_loaded_too(tmp_path: Path) -> None:
    source, target = nn.Module(), nn.Module()
    for module in (source, target):
        module.body = nn.Linear(2, 2)
    torch.save({"network_weights": source.state_dict()}, tmp_path / "a.pth")
    load(target, str(tmp_path / "a.pth"))
    assert torch.equal(target.body.weight, source.body.weight)
