"""``write_plan`` on real fingerprints: what stands in the file, and that stock nnU-Net takes it."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ctnet_nnunet.architectures.ctnet import CTNet
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import CTNetOptions, read_options
from ctnet_nnunet.planning.write import write_plan
from tests.planning.conftest import TINY, Dataset

FIRST_KEYS = [
    "epochs", "iterations", "val_iterations", "learning_rate", "warmup_epochs", "weight_decay", "batch_size", "seed",
    "save_minutes",
]  # fmt: skip


def test_the_file_holds_ctnet_and_its_block_for_every_configuration(dataset: Dataset) -> None:
    written = write_plan(dataset.id, preset="s", changes={**TINY, "epochs": 7, "pretrain.epochs": 3})
    assert written.file == dataset.file()
    assert [item.name for item in written.configurations] == ["2d", "3d_fullres"]
    for name in ("2d", "3d_fullres"):
        configuration = dataset.configuration(name)
        block = configuration["ctnet"]
        assert list(block)[: len(FIRST_KEYS)] == FIRST_KEYS
        assert set(block) == set(CTNetOptions.model_fields)
        assert (block["preset"], block["epochs"], block["pretrain"]["epochs"]) == ("s", 7, 3)
        in_the_network = dict(configuration["architecture"]["arch_kwargs"]["transformer"])
        in_the_network.pop("stage")
        assert in_the_network == block["transformer"]
        assert in_the_network == vars(read_options(block).transformer_options())


def test_stock_nnunet_builds_the_network_from_the_file(dataset: Dataset) -> None:
    write_plan(dataset.id, "3d_fullres", changes=TINY)
    configuration = PlansManager(str(dataset.file())).get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import, 1, 3, deep_supervision=True,
    )  # fmt: skip
    assert type(network) is CTNet
    grid = network.token_grid(configuration.patch_size)
    assert np.prod(grid) >= 27


def test_it_agrees_with_stock_on_everything_but_the_network(dataset: Dataset) -> None:
    write_plan(dataset.id, preset="identity")
    stock, ours = dataset.plans("nnUNetPlans"), dataset.plans()
    for name, configuration in ours["configurations"].items():
        theirs = stock["configurations"][name]
        for key in ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data_kwargs", "patch_size"):
            assert configuration[key] == theirs[key], key
        arguments = dict(configuration["architecture"]["arch_kwargs"])
        assert arguments.pop("transformer") is None
        assert arguments == theirs["architecture"]["arch_kwargs"]
    assert ours["transpose_forward"] == stock["transpose_forward"]


def test_stock_data_are_used_where_they_fit(dataset: Dataset) -> None:
    written = write_plan(dataset.id, changes=TINY)
    assert all(item.reuses_stock_data for item in written.configurations)
    assert dataset.configuration("2d")["data_identifier"] == "nnUNetPlans_2d"
    assert dataset.configuration()["data_identifier"] == "nnUNetPlans_3d_fullres"


def test_data_of_another_spacing_are_not_used(dataset: Dataset) -> None:
    written = write_plan(dataset.id, "3d_fullres", changes={**TINY, "spacing": [1.5, 1.25, 1.0]}, name="Fine")
    assert dataset.configuration(name="Fine")["spacing"] == [1.5, 1.25, 1.0]
    assert dataset.configuration(name="Fine")["data_identifier"] == "Fine_3d_fullres"
    assert not written.configurations[0].reuses_stock_data


@pytest.mark.parametrize(("place", "key", "value"), [
    ("configuration", "normalization_schemes", ["CTNormalization"]), ("configuration", "use_mask_for_norm", [True]),
    ("configuration", "resampling_fn_data_kwargs", {"order": 1}),
    ("configuration", "data_identifier", "Other_3d_fullres"),
    ("file", "transpose_forward", [2, 1, 0]), ("file", "image_reader_writer", "NibabelIO"),
])  # fmt: skip
def test_data_of_another_preprocessing_are_not_used(dataset: Dataset, place: str, key: str, value: object) -> None:
    stock = dataset.plans("nnUNetPlans")
    table = stock if place == "file" else stock["configurations"]["3d_fullres"]
    assert table[key] != value
    table[key] = value
    dataset.file("nnUNetPlans").write_text(json.dumps(stock))
    write_plan(dataset.id, "3d_fullres", changes=TINY)
    assert dataset.configuration()["data_identifier"] == "CTNetPlans_3d_fullres"


def test_without_stock_plans_there_are_none_to_use(dataset: Dataset) -> None:
    dataset.file("nnUNetPlans").unlink()
    write_plan(dataset.id, "3d_fullres", changes=TINY)
    assert dataset.configuration()["data_identifier"] == "CTNetPlans_3d_fullres"


def test_a_patch_size_is_kept_and_the_strides_follow_it(dataset: Dataset) -> None:
    write_plan(dataset.id, changes={**TINY, "patch_size": [16, 24, 32]})
    three_d, two_d = dataset.configuration(), dataset.configuration("2d")
    assert three_d["patch_size"] == [16, 24, 32]
    arguments = three_d["architecture"]["arch_kwargs"]
    total = np.prod(arguments["strides"], axis=0)
    assert not (np.array([16, 24, 32]) % total).any()
    assert total.tolist() == [4, 4, 4]
    assert len(arguments["strides"]) == len(arguments["features_per_stage"]) == arguments["n_stages"] == 3
    assert two_d["patch_size"] == [28, 24]  # a patch of three axes leaves the 2d configuration alone


def test_a_patch_that_does_not_divide_is_refused_with_the_next_that_does(dataset: Dataset) -> None:
    with pytest.raises(PlanError, match=r"patch_size=\[16, 22, 30\] .*next that is: \[16, 24, 32\]"):
        write_plan(dataset.id, "3d_fullres", changes={**TINY, "patch_size": [16, 22, 30]})
    assert "CTNetPlans.json" not in dataset.files()


@pytest.mark.parametrize(("changes", "features"), [
    ({"features_base": 6}, [6, 12, 24]), ({"features_base": 6, "features_max": 10}, [6, 10, 10]),
])  # fmt: skip
def test_features(dataset: Dataset, changes: dict[str, int], features: list[int]) -> None:
    written = write_plan(dataset.id, "3d_fullres", changes={**TINY, **changes})
    assert dataset.configuration()["architecture"]["arch_kwargs"]["features_per_stage"] == features
    assert written.configurations[0].features == features


def test_a_batch_size_is_set_in_the_plan_and_in_the_block(dataset: Dataset) -> None:
    write_plan(dataset.id, "3d_fullres", changes={**TINY, "batch_size": 5})
    assert dataset.configuration()["batch_size"] == dataset.configuration()["ctnet"]["batch_size"] == 5


def test_dotted_names_reach_the_plan(dataset: Dataset) -> None:
    changes = {**TINY, "batch_dice": True, "architecture.arch_kwargs.n_conv_per_stage": [1, 1, 1]}
    write_plan(dataset.id, "3d_fullres", changes=changes)
    assert dataset.configuration()["batch_dice"] is True
    assert dataset.configuration()["architecture"]["arch_kwargs"]["n_conv_per_stage"] == [1, 1, 1]


@pytest.mark.parametrize(("changes", "weights"), [
    ({"pretext.rotation": 0}, {"rotation": 0, "masked_features": 1.0, "volume_fusion": 0.0}),
    ({"pretext": {"masked_features": 2}}, {"masked_features": 2}),
])  # fmt: skip
def test_task_weights_singly_and_whole(dataset: Dataset, changes: dict[str, object], weights: dict[str, float]) -> None:
    write_plan(dataset.id, "3d_fullres", changes={**TINY, **changes})
    assert dataset.configuration()["ctnet"]["pretext"] == weights


def test_one_configuration_at_a_time_keeps_the_others(dataset: Dataset) -> None:
    write_plan(dataset.id, "3d_fullres", changes={**TINY, "epochs": 3})
    assert list(dataset.plans()["configurations"]) == ["3d_fullres"]
    written = write_plan(dataset.id, "2d", changes={**TINY, "epochs": 4})
    assert [item.name for item in written.configurations] == ["2d"]
    assert dataset.configuration("3d_fullres")["ctnet"]["epochs"] == 3
    assert dataset.configuration("2d")["ctnet"]["epochs"] == 4


def test_spacing_is_given_in_the_plans_axis_order(dataset_of: Callable[[int], Dataset]) -> None:
    dataset = dataset_of(541)
    write_plan(dataset.id, "3d_fullres", changes={**TINY, "spacing": [3.0, 1.5, 1.25]})
    assert dataset.configuration()["spacing"] == [3.0, 1.5, 1.25]
    assert dataset.plans()["transpose_forward"] == [2, 0, 1]  # the thick axis comes first
    with pytest.raises(PlanError, match="largest value must stay on the first axis"):
        write_plan(dataset.id, "3d_fullres", changes={**TINY, "spacing": [1.0, 1.5, 3.0]}, name="Other")
    assert "Other.json" not in dataset.files()


def test_planning_again_gives_the_same_file(dataset: Dataset) -> None:
    write_plan(dataset.id, changes=TINY)
    first = dataset.file().read_bytes()
    write_plan(f"{dataset.raw.name}", changes=TINY)
    assert dataset.file().read_bytes() == first
