"""``ctnet plan``: run the planner, apply a preset and the user's changes, check the network, write the plans file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from ctnet_nnunet.architectures.from_plan import check_patch
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.files import write_text
from ctnet_nnunet.planning.changes import Changes, set_dotted, sort_changes
from ctnet_nnunet.planning.datasets import dataset_folder_name, require_fingerprint, require_raw_dataset
from ctnet_nnunet.planning.memory import StepMemory, training_step_memory
from ctnet_nnunet.planning.options import merged_block, preset_block, read_options
from ctnet_nnunet.planning.planner import CTNetPlanner
from ctnet_nnunet.planning.plans_file import refuse_change_under_models, refuse_name
from ctnet_nnunet.planning.stock_data import STOCK_PLANS, same_preprocessing


@dataclass(frozen=True)
class PlannedConfiguration:
    """What ``ctnet plan`` prints of a configuration."""

    name: str
    patch_size: list[int]
    batch_size: int
    spacing: list[float]
    features: list[int]
    transformer: Mapping[str, Any] | None
    memory_gpu: StepMemory
    memory_cpu: StepMemory
    reuses_stock_data: bool


@dataclass(frozen=True)
class WrittenPlan:
    """The file and its configurations."""

    file: Path
    configurations: list[PlannedConfiguration]


def write_plan(
    dataset: str | int,
    configuration: str | None = None,
    preset: str = "m",
    gpu_memory: float = 8.0,
    changes: Mapping[str, Any] | None = None,
    name: str = "CTNetPlans",
    force: bool = False,
) -> WrittenPlan:
    """Plan CTNet for a dataset and write ``nnUNet_preprocessed/DatasetXXX/<name>.json``.

    Args:
        dataset: Id or name.
        configuration: The configuration to write; None for all that nnU-Net plans.
        preset: ``s``, ``m``, ``l`` or ``identity``.
        gpu_memory: Memory in GB that a training step may take.
        changes: ``--set`` keys and values: keys of the ``ctnet`` block, ``patch_size``, ``spacing``,
            ``features_base``, ``features_max``, or dotted names of the plan's own values.
        name: Name of the plans file without ending.
        force: Also write when models were trained with a file of this name and other content.

    Raises:
        SetupError, DataError, PlanError: With what, where and the remedy; nothing is written then.
    """
    dataset_name = dataset_folder_name(dataset)
    require_fingerprint(dataset_name)
    require_raw_dataset(dataset_name)
    file = Path(str(nnUNet_preprocessed)) / dataset_name / f"{name}.json"
    refuse_name(name, file)
    sorted_changes = sort_changes(changes or {})
    block = merged_block(preset_block(preset), {"preset": preset, **sorted_changes.options})
    if sorted_changes.task_weights:
        block["pretext"] = {**block["pretext"], **sorted_changes.task_weights}
    options = read_options(block, "--set")
    plans = _planned(dataset_name, name, gpu_memory, options.transformer_options(), sorted_changes)
    _keep_configurations(plans, configuration)
    _refuse_unused_patch(plans, sorted_changes)
    planned = list(plans["configurations"])
    for configuration_name, values in plans["configurations"].items():
        if "inherits_from" not in values:
            _complete(plans, configuration_name, values, block, sorted_changes)
    recursive_fix_for_json_export(plans)
    refuse_change_under_models(file, plans, force)
    summaries = [
        _summary(plans, key, value)
        for key, value in plans["configurations"].items()
        if "inherits_from" not in value and key in planned
    ]
    write_text(file, json.dumps(plans, indent=4), PlanError)
    return WrittenPlan(file, summaries)


def _planned(dataset: str, name: str, gpu_memory: float, transformer: Any, changes: Changes) -> dict[str, Any]:
    """The planner's plans; its many prints are kept off the terminal."""
    arguments: dict[str, Any] = {
        "gpu_memory_target_in_gb": gpu_memory,
        "plans_name": name,
        "transformer": transformer,
        "patch_sizes": [changes.planner["patch_size"]] if "patch_size" in changes.planner else (),
        "features_base": changes.planner.get("features_base", 32),
        "features_max": changes.planner.get("features_max"),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        planner = CTNetPlanner(dataset, **arguments)
        if "spacing" in changes.planner:
            forward, _ = planner.determine_transpose()
            original = [0.0, 0.0, 0.0]
            for position, axis in enumerate(forward):
                original[axis] = float(changes.planner["spacing"][position])
            planner = CTNetPlanner(dataset, overwrite_target_spacing=original, **arguments)
            if list(planner.determine_transpose()[0]) != list(forward):
                raise PlanError(
                    f"spacing={changes.planner['spacing']}: its largest value must stay on the first axis, which the "
                    "plan slices along"
                )
        plans: dict[str, Any] = planner.plan_experiment()
    return plans


def _keep_configurations(plans: dict[str, Any], configuration: str | None) -> None:
    available = plans["configurations"]
    if configuration is not None:
        if configuration not in available:
            raise PlanError(f"configuration {configuration!r}: nnU-Net plans {', '.join(available)} for this dataset")
        plans["configurations"] = {name: available[name] for name in _with_ancestors(available, configuration)}


def _with_ancestors(available: Mapping[str, Any], name: str) -> list[str]:
    """A configuration behind those that it inherits from or continues (the cascade's)."""
    values = available[name]
    found: list[str] = []
    for other in (values.get("inherits_from"), values.get("previous_stage")):
        found += [] if other is None else _with_ancestors(available, other)
    return [*dict.fromkeys(found), name]


def _refuse_unused_patch(plans: dict[str, Any], changes: Changes) -> None:
    patch = changes.planner.get("patch_size")
    dimensions = {len(values["patch_size"]) for values in plans["configurations"].values() if "patch_size" in values}
    if patch is not None and len(patch) not in dimensions:
        raise PlanError(
            f"--set patch_size={patch}: has {len(patch)} axes, and {', '.join(plans['configurations'])} has "
            f"{' or '.join(map(str, sorted(dimensions)))}"
        )


def _complete(
    plans: dict[str, Any], name: str, configuration: dict[str, Any], block: dict[str, Any], changes: Changes
) -> None:
    """Add the ``ctnet`` block, the user's direct values and the data identifier to one configuration."""
    configuration["ctnet"] = dict(block)
    if block["batch_size"] is not None:
        configuration["batch_size"] = block["batch_size"]
    for key, value in changes.direct.items():
        set_dotted(configuration, key, value)
    check_patch(configuration["architecture"], configuration["patch_size"])
    recursive_fix_for_json_export(configuration)
    stock = Path(str(nnUNet_preprocessed)) / plans["dataset_name"] / f"{STOCK_PLANS}.json"
    if stock.is_file() and same_preprocessing(plans, configuration, load_json(str(stock)), name):
        configuration["data_identifier"] = f"{STOCK_PLANS}_{name}"


def _summary(plans: dict[str, Any], name: str, configuration: dict[str, Any]) -> PlannedConfiguration:
    arguments = configuration["architecture"]["arch_kwargs"]
    shape = (configuration["architecture"], configuration["patch_size"], configuration["batch_size"])
    channels = len(configuration["normalization_schemes"])
    dataset_json = load_json(str(Path(str(nnUNet_raw)) / plans["dataset_name"] / "dataset.json"))
    classes = len(dataset_json["labels"])
    return PlannedConfiguration(
        name=name,
        patch_size=list(configuration["patch_size"]),
        batch_size=configuration["batch_size"],
        spacing=list(configuration["spacing"]),
        features=list(arguments["features_per_stage"]),
        transformer=arguments["transformer"],
        memory_gpu=training_step_memory(*shape, channels, classes, mixed_precision=True),
        memory_cpu=training_step_memory(*shape, channels, classes, mixed_precision=False),
        reuses_stock_data=configuration["data_identifier"].startswith(f"{STOCK_PLANS}_"),
    )
