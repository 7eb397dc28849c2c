"""The typed ctnet block: presets, how changes merge, and errors that name the key and list the valid ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import PRESETS, CTNetOptions, merged_block, preset_block, read_options
from ctnet_nnunet.pretext import PRETEXTS
from tests.architectures.plan_table import BY_NAME

FIRST_KEYS = [
    "epochs", "iterations", "val_iterations", "learning_rate", "warmup_epochs", "weight_decay", "batch_size", "seed",
    "save_minutes",
]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_begins_with_the_schedule_and_is_complete(preset: str) -> None:
    block = preset_block(preset)
    assert list(block)[: len(FIRST_KEYS)] == FIRST_KEYS
    assert set(block) == set(CTNetOptions.model_fields)
    assert block["preset"] == preset


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_parses_and_builds_its_network(preset: str) -> None:
    options = read_options({"preset": preset})
    assert options.model_dump() == CTNetOptions(**preset_block(preset)).model_dump()
    block = BY_NAME["isotropic 3d"].block(options.transformer_options())
    with torch.device("meta"):
        network = CTNet(1, 2, **_resolved(block["arch_kwargs"]))
    assert (network.transformer is None) == (preset == "identity")


def _resolved(arguments: dict[str, Any]) -> dict[str, Any]:
    operators = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    return {**arguments, **operators}


def test_presets_grow_in_the_order_of_their_names() -> None:
    sizes = [read_options({"preset": name}).transformer_options() for name in ("s", "m", "l")]
    assert all(size is not None for size in sizes)
    assert sizes[0].embed_dim < sizes[1].embed_dim < sizes[2].embed_dim
    assert sizes[0].depth < sizes[1].depth < sizes[2].depth
    assert sizes[1] == TransformerOptions()


def test_the_smallest_preset_really_builds() -> None:
    transformer = read_options({"preset": "s"}).transformer_options()
    network = network_from_plan(BY_NAME["tiny: one stage earlier"].block(transformer), 4, 2, False)
    assert isinstance(network, CTNet)
    assert len(network.transformer.blocks) == 4


@pytest.mark.parametrize("block", [None, {}])
def test_no_block_is_preset_m(block: dict[str, Any] | None) -> None:
    assert read_options(block) == read_options(preset_block("m"))


def test_a_partial_block_is_filled_from_its_preset() -> None:
    options = read_options({"preset": "s", "mask_ratio": 0.3, "transformer": {"depth": 1}})
    assert options.mask_ratio == 0.3
    assert options.transformer_options() == TransformerOptions(embed_dim=192, depth=1, heads=3)
    assert options.epochs == preset_block("s")["epochs"]


def test_reading_a_block_again_changes_nothing() -> None:
    for preset in PRESETS:
        complete = merged_block(preset_block(preset), {"epochs": 7, "pretrain": {"learning_rate": 0.002}})
        assert read_options(complete) == read_options(read_options(complete).model_dump())
        assert merged_block(preset_block("l"), complete) == complete


def test_a_shared_key_speaks_for_every_mode_and_a_modes_own_key_for_itself() -> None:
    preset = preset_block("m")
    assert read_options(preset).schedule("pretrain").epochs == preset["pretrain"]["epochs"] != preset["epochs"]
    shared = read_options({"epochs": 50})
    assert [shared.schedule(mode).epochs for mode in ("supervised", "pretrain", "volf")] == [50, 50, 50]
    own = read_options({"epochs": 50, "pretrain": {"epochs": 20}})
    assert [own.schedule(mode).epochs for mode in ("supervised", "pretrain", "volf")] == [50, 20, 20]
    assert own.schedule("pretrain").weight_decay == preset["pretrain"]["weight_decay"]
    last = read_options({"pretrain": {"epochs": 20}, "volf": {"epochs": 5}})
    assert [last.schedule(mode).epochs for mode in ("supervised", "pretrain", "volf")] == [preset["epochs"], 20, 5]


@pytest.mark.parametrize(("block", "mode", "warmup"), [
    ({"epochs": 1000}, "supervised", 10), ({"epochs": 40}, "supervised", 4), ({"epochs": 40}, "pretrain", 2),
    ({"epochs": 40, "warmup_epochs": 7}, "supervised", 7), ({"epochs": 40, "warmup_epochs": 0}, "pretrain", 0),
])  # fmt: skip
def test_the_warm_up_of_null(block: dict[str, Any], mode: Any, warmup: float) -> None:
    assert read_options(block).schedule(mode).warmup_epochs == warmup


def test_naming_the_tasks_leaves_the_others_out() -> None:
    assert read_options({"pretext": {"masked_features": 2}}).pretext == {"masked_features": 2.0}


def test_a_transformer_can_be_put_into_identity_and_taken_out_of_m() -> None:
    assert read_options({"preset": "identity", "transformer": {"depth": 2}}).transformer_options().depth == 2
    assert read_options({"preset": "m", "transformer": None}).transformer_options() is None


@pytest.mark.parametrize(("block", "key", "valid"), [
    ({"epoch": 3}, "epoch", ["epochs", "mask_ratio", "teacher_momentum"]),
    ({"transformer": {"width": 3}}, "transformer.width", ["transformer.embed_dim", "transformer.heads"]),
    ({"pretrain": {"speed": 1}}, "pretrain.speed", ["pretrain.epochs", "pretrain.save_minutes"]),
    ({"volf": {"mask_ratio": 0.5}}, "volf.mask_ratio", ["volf.epochs"]),
    ({"pretext": {"jigsaw": 1}}, "pretext.jigsaw", [f"pretext.{name}" for name in PRETEXTS]),
])  # fmt: skip
def test_an_unknown_key_is_named_and_the_valid_ones_are_listed(
    block: dict[str, Any], key: str, valid: list[str]
) -> None:
    with pytest.raises(PlanError) as caught:
        read_options(block, "plans Mine")
    line = str(caught.value)
    assert line.startswith(f"plans Mine: unknown ctnet option {key}; valid are ")
    assert set(valid) <= set(line.split("valid are ")[1].split(", "))
    assert "\n" not in line


@pytest.mark.parametrize(("block", "key"), [
    ({"epochs": 0}, "epochs"), ({"epochs": 1.5}, "epochs"), ({"epochs": "20"}, "epochs"), ({"epochs": True}, "epochs"),
    ({"learning_rate": "fast"}, "learning_rate"), ({"learning_rate": "0.1"}, "learning_rate"),
    ({"learning_rate": True}, "learning_rate"), ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"), ({"learning_rate": float("inf")}, "learning_rate"),
    ({"weight_decay": -0.1}, "weight_decay"), ({"warmup_epochs": -1}, "warmup_epochs"), ({"seed": -1}, "seed"),
    ({"batch_size": 0}, "batch_size"), ({"save_minutes": 0}, "save_minutes"),
    ({"mixed_precision": 1}, "mixed_precision"), ({"encoder_rate": 1.1}, "encoder_rate"),
    ({"encoder_rate": -0.1}, "encoder_rate"), ({"encoder_rate": "0.5"}, "encoder_rate"),
    ({"mask_input": "yes"}, "mask_input"), ({"mask_block": 0}, "mask_block"), ({"mask_block": True}, "mask_block"),
    ({"mask_ratio": 1.0}, "mask_ratio"), ({"mask_ratio": "0.5"}, "mask_ratio"),
    ({"mask_target": "pixel"}, "mask_target"),
    ({"rotations": 6}, "rotations"), ({"teacher_momentum": 2.0}, "teacher_momentum"),
    ({"pretext": {"rotation": -1}}, "pretext.rotation"), ({"seed": 2**32}, "seed"), ({"pretext": [1]}, "pretext"),
    ({"transformer": {"heads": 5}}, "embed_dim=384 is not a multiple of heads=5"),
    ({"transformer": "big"}, "transformer"),
    ({"transformer": {"drop_path": 1.0}}, "transformer.drop_path"),
    ({"transformer": {"depth": -1}}, "transformer.depth"),
    ({"pretrain": {"epochs": 0}}, "pretrain.epochs"),
    ({"pretrain": {"epochs": 0}, "volf": {"epochs": 3}}, "pretrain.epochs"),
    ({"volf": {"learning_rate": "x"}}, "volf.learning_rate"), ({"pretrain": 5}, "pretrain"), ({"volf": [1]}, "volf"),
    ({"preset": "xxl"}, "'xxl' does not exist; valid are s, m, l, identity"), ({"preset": ["m"]}, "does not exist"),
])  # fmt: skip
def test_an_ill_typed_value_is_refused_by_name(block: dict[str, Any], key: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_options(block)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, -9, True, "3", 2.0, "last", [1]])
def test_a_guest_s_slice_is_middle_or_an_index(value: Any) -> None:
    """As planes.json has it; nothing is read as another number."""
    with pytest.raises(PlanError, match=r"ctnet option planes_guest_slice[=:]") as caught:
        read_options({"planes_guest_slice": value})
    assert "literal[" not in str(caught.value) and repr(value) in str(caught.value)
    for good in (0, 3, "middle", None):
        assert read_options({"planes_guest_slice": good}).planes_guest_slice == good


@pytest.mark.parametrize("block", ["m", 3, ["epochs"]])
def test_a_block_that_is_no_table_is_refused(block: Any) -> None:
    with pytest.raises(PlanError, match="not a table of keys"):
        read_options(block)


def test_options_cannot_be_changed_behind_the_plans_back() -> None:
    options = read_options(None)
    with pytest.raises(ValueError, match="frozen"):
        options.epochs = 3
