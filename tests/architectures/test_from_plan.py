"""Plans that must not build: hostile, broken or foreign ones end in one line, and nothing that they name is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.architectures.from_plan import NETWORKS, as_ctnet, check_patch, checked_class_name, network_from_plan
from ctnet_nnunet.errors import PlanError
from tests.architectures.plan_table import BY_NAME, SMALL

PLAN = BY_NAME["isotropic 3d"]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a torch.hub repository and a module, each of which leaves a file when it is imported."""
    trace = tmp_path / "imported"
    code = f"open({str(trace)!r}, 'w').close()\ndef CTNet(*a, **k): pass\nnet = CTNet\n"
    for name in ("hubconf.py", "hostile_module.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return trace


def refused(block: dict[str, Any], patch: tuple[int, ...] = PLAN.patch) -> str:
    """The one line with which both ways to a network refuse a block."""
    lines = []
    for build in (lambda: as_ctnet(block, patch, SMALL), lambda: network_from_plan(block, 1, 2, True)):
        try:
            build()
        except PlanError as error:
            lines.append(str(error))
    assert lines, "the block was taken"
    assert all("\n" not in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize("name", [
    "torch.hub.load", "os.system", "hostile_module.CTNet", "hostile_module", "CTNet", "", "builtins.exec",
    "ctnet_nnunet.architectures.ctnet.CTNet.__init__", None, 7, ["torch.nn.Conv3d"],
])  # fmt: skip
def test_a_foreign_network_class_is_refused_and_not_imported(name: Any, canary: Path) -> None:
    block = {**PLAN.unet_block(), "network_class_name": name}
    block["arch_kwargs"] |= {"repo_or_dir": str(canary.parent), "source": "local", "model": "net"}
    line = refused(block)
    assert repr(name) in line
    assert "PlainConvUNet, ResidualEncoderUNet, CTNet" in line
    assert not canary.exists()
    assert "hostile_module" not in sys.modules
    with pytest.raises(PlanError):
        checked_class_name(block)


def test_no_class_name_at_all() -> None:
    assert "None" in refused({"arch_kwargs": {"strides": [[1, 1, 1]]}})


@pytest.mark.parametrize("key", ["conv_op", "norm_op", "dropout_op", "nonlin"])
@pytest.mark.parametrize("name", ["hostile_module.CTNet", "torch.nn.Linear", "os.system", "", 3, ["torch.nn.ReLU"]])
def test_a_foreign_operator_is_refused_and_not_imported(key: str, name: Any, canary: Path) -> None:
    block = PLAN.unet_block()
    block["arch_kwargs"][key] = name
    line = refused(block)
    assert key in line
    assert repr(name) in line
    assert "torch.nn.Conv3d" in line  # the valid ones are listed
    assert not canary.exists()


@pytest.mark.parametrize("change", [
    lambda block: block["_kw_requires_import"].append("nonlin_kwargs"),
    lambda block: block.update(_kw_requires_import=["conv_op", "norm_op", "dropout_op", "nonlin", "extra"]),
    lambda block: block["arch_kwargs"].update(block="hostile_module.CTNet"),
])  # fmt: skip
def test_an_argument_to_import_is_refused(change: Callable[[dict[str, Any]], None], canary: Path) -> None:
    block = PLAN.unet_block()
    change(block)
    assert "would import" in refused(block)
    assert not canary.exists()


@pytest.mark.parametrize(("strides", "words"), [
    (None, "no strides"), ([], "no strides"), ("2,2,2", "no strides"), (4, "no strides"),
    ([["a", "b", "c"]], "not one list per stage"), ([[1, 1, 1], [2, 2]], "not one list per stage"),
    ([[1, 1], [2, 2], [2, 2], [2, 2]], "3 axes, its strides have 2"),
    ([[1, 1, 1], [3, 2, 2], [2, 2, 2], [2, 2, 2]], "not divisible by the cumulative strides [12, 8, 8]"),
])  # fmt: skip
def test_bad_strides(strides: Any, words: str) -> None:
    block = PLAN.unet_block()
    block["arch_kwargs"]["strides"] = strides
    with pytest.raises(PlanError) as caught:
        as_ctnet(block, PLAN.patch, SMALL)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_strides_and_missing_arguments() -> None:
    block = PLAN.unet_block()
    del block["arch_kwargs"]["strides"]
    with pytest.raises(PlanError, match="no strides"):
        check_patch(block, PLAN.patch)
    with pytest.raises(PlanError, match="no strides"):
        check_patch({"network_class_name": block["network_class_name"]}, PLAN.patch)


@pytest.mark.parametrize("patch", [(32, 32, 30), (31, 32, 32), (4, 32, 32)])
def test_a_patch_that_the_strides_do_not_divide(patch: tuple[int, ...]) -> None:
    line = refused(PLAN.unet_block(), patch)
    assert f"patch_size {list(patch)} is not divisible by the cumulative strides [8, 8, 8]" in line


@pytest.mark.parametrize(("change", "word"), [
    (lambda kwargs: kwargs.update(depth_of_the_sea=3), "depth_of_the_sea"),
    (lambda kwargs: kwargs.pop("n_stages"), "n_stages"),
    (lambda kwargs: kwargs.update(n_stages=9), "CTNet"),
    (lambda kwargs: kwargs.update(features_per_stage=[4, 8]), "CTNet"),
    (lambda kwargs: kwargs.update(features_per_stage=[-4, 8, 8, 8]), "CTNet"),
    (lambda kwargs: kwargs["transformer"].update(stage=11), "stage 11"),
    (lambda kwargs: kwargs["transformer"].pop("stage"), "stage"),
    (lambda kwargs: kwargs["transformer"].update(wings=2), "wings"),
    (lambda kwargs: kwargs["transformer"].update(heads=5), "embed_dim=12"),
    (lambda kwargs: kwargs["transformer"].update(embed_dim=None), "CTNet"),
    (lambda kwargs: kwargs.update(transformer="big"), "CTNet"),
])  # fmt: skip
def test_arguments_that_fit_no_network(change: Callable[[dict[str, Any]], None], word: str) -> None:
    block = PLAN.block()
    change(block["arch_kwargs"])
    with pytest.raises(PlanError) as caught:
        network_from_plan(block, 1, 2, True)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_is_fixed_and_each_name_gives_its_class() -> None:
    assert set(NETWORKS.values()) == {PlainConvUNet, ResidualEncoderUNet, CTNet}
    for name in ("isotropic 3d", "ResEnc 2d"):
        plan = BY_NAME[name]
        network = network_from_plan(plan.unet_block(), plan.channels, plan.classes, True)
        assert type(network) is NETWORKS[plan.unet_block()["network_class_name"]]
        assert network.decoder.deep_supervision is True
