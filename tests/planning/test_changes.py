"""``--set``: how a text becomes a value, where a key goes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.changes import dotted_names, parse_assignments, set_dotted, sort_changes
from ctnet_nnunet.planning.options import CTNetOptions


@pytest.mark.parametrize(("text", "key", "value"), [
    ("epochs=20", "epochs", 20), ("learning_rate=3e-4", "learning_rate", 3e-4), ("batch_size=null", "batch_size", None),
    ("mask_input=false", "mask_input", False), ("patch_size=[40,56,40]", "patch_size", [40, 56, 40]),
    ("mask_target=voxel", "mask_target", "voxel"), ("a.b=x=y", "a.b", "x=y"), (" epochs =20", "epochs", 20),
    ('pretext={"rotation": 1}', "pretext", {"rotation": 1}), ("name=", "name", ""),
])  # fmt: skip
def test_a_value_is_json_or_else_text(text: str, key: str, value: Any) -> None:
    parsed = parse_assignments([text])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize(("texts", "words"), [
    (["epochs"], "key=value"), (["=3"], "key=value"), (["epochs 3"], "key=value"),
    (["seed=1", "seed=2"], "seed: given twice"),
])  # fmt: skip
def test_what_is_no_assignment_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_assignments(texts)


def test_every_key_goes_to_its_place() -> None:
    changes = sort_changes({
        "epochs": 3, "transformer.depth": 2, "transformer.heads": 4, "pretrain.epochs": 5, "volf.epochs": 6,
        "pretext.rotation": 0, "features_base": 8, "patch_size": [32, 32, 32], "spacing": [1, 1.5, 1.5],
        "batch_dice": True, "architecture.arch_kwargs.conv_bias": False, "mask_ratio": 0.5,
    })  # fmt: skip
    assert changes.options == {
        "epochs": 3, "transformer": {"depth": 2, "heads": 4}, "pretrain": {"epochs": 5}, "volf": {"epochs": 6},
        "mask_ratio": 0.5,
    }  # fmt: skip
    assert changes.task_weights == {"rotation": 0}
    assert changes.planner == {"features_base": 8, "patch_size": [32, 32, 32], "spacing": [1, 1.5, 1.5]}
    assert changes.direct == {"batch_dice": True, "architecture.arch_kwargs.conv_bias": False}


def test_every_option_is_reached_by_its_name() -> None:
    for name in set(CTNetOptions.model_fields) - {"preset"}:
        assert sort_changes({name: 1}).options == {name: 1}


@pytest.mark.parametrize("changes", [
    {"transformer": {"depth": 2}, "transformer.heads": 4}, {"transformer.heads": 4, "transformer": {"depth": 2}},
    {"transformer": None, "transformer.depth": 2}, {"pretrain": {}, "pretrain.epochs": 2},
    {"pretext": {"rotation": 1}, "pretext.masked_features": 0},
    {"pretext.masked_features": 0, "pretext": {"rotation": 1}},
])  # fmt: skip
def test_a_table_set_whole_and_in_part_is_refused_in_either_order(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="is set as a whole, too"):
        sort_changes(changes)


def test_the_preset_has_an_option_of_its_own() -> None:
    with pytest.raises(PlanError, match="--preset l"):
        sort_changes({"preset": "l"})


@pytest.mark.parametrize(("key", "value"), [
    ("features_base", 0), ("features_base", 3.5), ("features_base", True), ("features_base", "8"), ("features_max", -1),
    ("patch_size", 32), ("patch_size", [32]), ("patch_size", [32, 32, 32, 32]), ("patch_size", [32.5, 32, 32]),
    ("patch_size", [0, 32, 32]), ("patch_size", ["32", 32, 32]), ("patch_size", [True, 32, 32]),
    ("patch_size", "32x32x32"),
    ("spacing", [1.0, 1.0]), ("spacing", [1.0, -1.0, 1.0]), ("spacing", 1.0), ("spacing", [1, 1, None]),
])  # fmt: skip
def test_ill_typed_planner_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(PlanError, match=f"--set {key}="):
        sort_changes({key: value})


def configuration() -> dict[str, Any]:
    return {
        "batch_size": 2, "batch_dice": False, "spacing": [1.0, 1.0, 1.0], "architecture": {
            "network_class_name": "A", "arch_kwargs": {"conv_bias": True, "dropout_op": None, "n_stages": 3},
        },
        "rate": 0.5, "ctnet": {"epochs": 3}, "empty": {},
    }  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [
    ("batch_dice", True), ("architecture.arch_kwargs.conv_bias", False), ("rate", 1), ("rate", 0.25), ("batch_size", 4),
    ("architecture.arch_kwargs.dropout_op", "torch.nn.Dropout3d"), ("spacing", (2.0, 1.0, 1.0)),
    ("architecture.network_class_name", "B"),
])  # fmt: skip
def test_a_dotted_name_replaces_its_value_alone(key: str, value: Any) -> None:
    changed = configuration()
    set_dotted(changed, key, value)
    table = changed
    for part in key.split(".")[:-1]:
        table = table[part]
    assert table[key.split(".")[-1]] == value
    restored = configuration()
    table[key.split(".")[-1]] = _at(restored, key)
    assert changed == restored


def _at(table: Any, key: str) -> Any:
    for part in key.split("."):
        table = table[part]
    return table


@pytest.mark.parametrize("key", [
    "batchsize", "architecture.arch_kwargs.wings", "architecture.nothing.there", "batch_size.inner", "spacing.0", "",
])  # fmt: skip
def test_an_unknown_name_lists_the_valid_ones(key: str) -> None:
    changed = configuration()
    with pytest.raises(PlanError, match="unknown key; valid are") as caught:
        set_dotted(changed, key, 3)
    valid = str(caught.value).split("valid are ")[1].split(", ")
    assert {"epochs", "patch_size", "batch_size", "architecture.arch_kwargs.n_stages"} <= set(valid)
    assert changed == configuration()


@pytest.mark.parametrize(("key", "value"), [
    ("batch_size", "4"), ("batch_size", 2.5), ("batch_size", True), ("batch_dice", 1), ("spacing", 1.0), ("rate", "x"),
    ("rate", True), ("architecture", 3), ("architecture.network_class_name", 3), ("batch_size", None),
])  # fmt: skip
def test_a_value_of_another_type_is_refused(key: str, value: Any) -> None:
    changed = configuration()
    with pytest.raises(PlanError, match="is of another type"):
        set_dotted(changed, key, value)
    assert changed == configuration()


def test_the_names_of_a_configuration_are_dotted_and_leave_the_block_out() -> None:
    assert dotted_names(configuration()) == [
        "batch_size", "batch_dice", "spacing", "architecture.network_class_name", "architecture.arch_kwargs.conv_bias",
        "architecture.arch_kwargs.dropout_op", "architecture.arch_kwargs.n_stages", "rate", "empty",
    ]  # fmt: skip
