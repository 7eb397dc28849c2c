"""A model folder of nnU-Net's, read without unpickling code and without importing any name out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from ctnet_nnunet.architectures.from_plan import as_ctnet, network_from_plan
from ctnet_nnunet.checkpoints import compare_weights, read_checkpoint
from ctnet_nnunet.errors import CheckpointError, DataError, PlanError
from ctnet_nnunet.files import sha256
from ctnet_nnunet.planning.cross_modality import fusion_network
from ctnet_nnunet.planning.options import read_options

CHECKPOINT = "checkpoint_final.pth"
OF_A_FUSION = "fusion.seg_layers.0.weight"
"""A key that cross-modality networks alone have."""
# The plan names these; nnU-Net looks them up inside its own package, and only what is known here gets that far.
KNOWN = {
    "image_reader_writer": {"SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO"},
    "preprocessor_name": {"DefaultPreprocessor"},
    "resampling_fn_data": {"resample_data_or_seg_to_shape", "resample_torch_simple", "resample_torch_fornnunet"},
    "resampling_fn_probabilities": {
        "resample_data_or_seg_to_shape", "resample_torch_simple", "resample_torch_fornnunet",
    },
    "normalization_schemes": {
        "ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
    },
}  # fmt: skip


@dataclass
class Model:
    """A trained model: what its plan says, a network, and one set of weights a fold.

    Attributes:
        folder: Of the model, with ``plans.json``, ``dataset.json`` and ``fold_X``.
        folds: Their names.
        weights: One state dict a fold.
        network: Built from the plan; holds the first fold's weights.
        mirror_axes: Axes of the patch for test-time mirroring, or None.
        hashes: File → SHA-256 of the checkpoints, for the record of a run.
    """

    folder: Path
    folds: tuple[str, ...]
    weights: list[Mapping[str, Tensor]]
    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    trainer: str
    mirror_axes: tuple[int, ...] | None
    hashes: dict[str, str]

    @property
    def channels(self) -> int:
        """How many input channels it expects."""
        return len(self.dataset_json["channel_names"])

    @property
    def file_ending(self) -> str:
        return str(self.dataset_json["file_ending"])


def load_model(folder: Path, folds: Sequence[str] | None = None) -> Model:
    """Read a model folder.

    Args:
        folder: ``nnUNet_results/DatasetXXX/TRAINER__PLANS__CONFIGURATION``.
        folds: Names like ``0`` or ``all``; None takes every fold that was trained to its end.

    Raises:
        DataError, PlanError, CheckpointError: If a file is missing, broken, of another plan, or would import code.
    """
    plans, dataset_json = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    names = _folds(folder, folds)
    files = [folder / f"fold_{name}" / CHECKPOINT for name in names]
    checkpoints = [read_checkpoint(file) for file in files]
    configuration_name = _configuration_name(checkpoints[0], plans, files[0])
    _refuse_unknown_names(plans, configuration_name, folder)
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(configuration_name)
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise PlanError(f"{folder}: plans.json or dataset.json cannot be used ({error!r}); copy it again") from None
    if configuration.previous_stage_name is not None:
        raise PlanError(f"{folder}: a cascade's second stage; predict it with nnUNetv2_predict")
    network = _network(configuration.configuration, channels, heads, checkpoints[0]["network_weights"], files[0])
    for file, checkpoint in zip(files, checkpoints, strict=True):
        _check_fits(network, checkpoint["network_weights"], file)
    network.load_state_dict(checkpoints[0]["network_weights"])
    axes = checkpoints[0].get("inference_allowed_mirroring_axes")
    return Model(
        folder=folder,
        folds=names,
        weights=[checkpoint["network_weights"] for checkpoint in checkpoints],
        network=network,
        plans=manager,
        configuration=configuration,
        dataset_json=dataset_json,
        trainer=str(checkpoints[0].get("trainer_name", "unknown")),
        mirror_axes=tuple(int(axis) for axis in axes) if axes else None,
        hashes={f"fold_{name}/{CHECKPOINT}": sha256(file) for name, file in zip(names, files, strict=True)},
    )


def _folds(folder: Path, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted:
        return tuple(dict.fromkeys(wanted))
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{CHECKPOINT}"))
    # fold all saw every case; beside the cross-validation's folds it is no member of their ensemble.
    numbered = [name for name in found if name.isdigit()]
    if not found:
        raise CheckpointError(f"{folder}: no fold_*/{CHECKPOINT}; give a trained model's folder with -m")
    return tuple(numbered or found)


def _configuration_name(checkpoint: Mapping[str, Any], plans: Mapping[str, Any], file: Path) -> str:
    arguments = checkpoint.get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    known = plans.get("configurations")
    if not isinstance(known, Mapping) or name not in known:
        raise CheckpointError(f"{file}: was trained with configuration {name!r}, which plans.json beside it lacks")
    return str(name)


def _refuse_unknown_names(plans: Mapping[str, Any], name: str, folder: Path) -> None:
    """Every name that nnU-Net would look up must be one of its own."""
    block: Mapping[str, Any] = plans["configurations"][name]
    merged: dict[str, Any] = {}
    seen: set[str] = set()
    while isinstance(block, Mapping):
        merged = {**block, **merged}
        parent = block.get("inherits_from")
        if parent is None or parent in seen:
            break
        seen.add(parent)
        block = plans["configurations"].get(parent, {})
    for key in ("architecture", "patch_size", "spacing", *KNOWN):
        if key not in merged and key not in plans:
            raise PlanError(f"{folder}/plans.json: configuration {name} lacks {key}; copy the model again")
    for key, allowed in KNOWN.items():
        value = plans.get(key) if key == "image_reader_writer" else merged.get(key)
        values = value if isinstance(value, list) else [value]
        if unknown := [item for item in values if item not in allowed]:
            raise PlanError(f"{folder}/plans.json: {key} {unknown[0]!r} is not nnU-Net's; known are {sorted(allowed)}")


def _network(
    configuration: Mapping[str, Any], channels: int, heads: int, weights: Mapping[str, Tensor], file: Path
) -> nn.Module:
    """The plan's network, the CTNet that it translates to, or a fusion of two: whichever the weights are of."""
    architecture, patch = configuration["architecture"], configuration["patch_size"]
    options = read_options(configuration.get("ctnet"), "plans.json")
    networks: list[nn.Module]
    if OF_A_FUSION in weights:
        networks = [fusion_network(configuration, options.cross_modality, heads)]
    else:
        candidates = [architecture, as_ctnet(architecture, patch, options.transformer_options())]
        networks = [network_from_plan(candidate, channels, heads, False) for candidate in candidates]
    for network in networks:
        if not _differences(network, weights):
            return network
    _check_fits(networks[0], weights, file)
    raise AssertionError("unreachable: the line above raises")


def _differences(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    wanted = network.state_dict()
    differences = [item.key for item in compare_weights(wanted, weights)]
    return differences + [k for k in wanted if k in weights and wanted[k].shape != weights[k].shape]


def _check_fits(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{file}: its network_weights are no table of tensors; take the model again")
    if differences := _differences(network, weights):
        raise CheckpointError(
            f"{file}: {len(differences)} tensors are not of plans.json's network (first: {differences[0]}); the "
            "checkpoint and the plans beside it do not belong together"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{file}: missing; give the model's folder with -m (it holds plans.json and fold_X)") from None
    except ValueError as error:
        raise DataError(f"{file}: no valid JSON ({error}); take the model again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds no JSON object; take the model again")
    return content
