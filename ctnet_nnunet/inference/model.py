"""A trained model, out of nnU-Net's folder or out of a bundle, without unpickling code or importing any name of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from ctnet_nnunet.architectures.from_plan import as_ctnet, network_from_plan
from ctnet_nnunet.checkpoints import compare_weights
from ctnet_nnunet.errors import CheckpointError, DataError, PlanError
from ctnet_nnunet.image_check import MAX_VOXELS
from ctnet_nnunet.inference.bundle import read_bundle
from ctnet_nnunet.inference.checked_json import checked, merged_configuration
from ctnet_nnunet.inference.contents import Contents
from ctnet_nnunet.inference.model_folder import read_folder
from ctnet_nnunet.inference.schema import Dataset, Plans, Transformer
from ctnet_nnunet.planning.cross_modality import branch, fusion_network
from ctnet_nnunet.planning.options import read_options

EARLY_FUSION = "nnUNetTrainerEarlyFusion"
OF_A_FUSION = "fusion.seg_layers.0.weight"
"""A key that cross-modality networks alone have."""
_CT_INTENSITIES = {"mean", "std", "percentile_00_5", "percentile_99_5"}


@dataclass
class Model:
    """A trained model: what its plan says, a network, and one set of weights a fold.

    Attributes:
        source: The folder (``plans.json``, ``dataset.json``, ``fold_X``) or the bundle that it came from.
        folds: Their names.
        weights: One state dict a fold.
        network: Built from the plan; holds the first fold's weights.
        mirror_axes: Axes of the patch for test-time mirroring, or None.
        hashes: File → SHA-256 of what was read, for the record of a run.
        extras: What else describes the training, by file name: ``dataset_fingerprint.json`` and
            ``reference_volumes.json``, where the model has them.
    """

    source: Path
    folds: tuple[str, ...]
    weights: list[Mapping[str, Tensor]]
    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    configuration_name: str
    dataset_json: dict[str, Any]
    trainer: str
    mirror_axes: tuple[int, ...] | None
    hashes: dict[str, str]
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """How many input channels it expects."""
        return len(self.dataset_json["channel_names"])

    @property
    def file_ending(self) -> str:
        return str(self.dataset_json["file_ending"])

    def check_resampled(self, size: Sequence[int], spacing: Sequence[float], file: Path) -> None:
        """Refuse a scan that its own and the plan's spacing would blow up.

        Args:
            size, spacing: Of the scan, in voxels and mm, in any order of axes.
            file: Named in the error.

        Raises:
            DataError: If it would have more than :data:`MAX_VOXELS` voxels behind resampling.
        """
        planned = [float(value) for value in self.configuration.spacing]
        # The product does not depend on the order of axes. A 2d plan leaves one axis as it is: this is its upper bound.
        given = sorted(spacing)[-len(planned) :]
        voxels = math.prod(size) * math.prod(given) / math.prod(planned)
        if voxels > MAX_VOXELS:
            raise DataError(
                f"{file}: resampled from {_mm(spacing)} to the plan's {_mm(planned)} it has {voxels:.2g} voxels, "
                f"above the limit of {MAX_VOXELS}; check its spacing"
            )


def _mm(spacing: Sequence[float]) -> str:
    return " × ".join(f"{size:.3g}" for size in spacing) + " mm"


def load_model(source: Path, folds: Sequence[str] | None = None) -> Model:
    """Read a model.

    Args:
        source: ``nnUNet_results/DatasetXXX/TRAINER__PLANS__CONFIGURATION``, or a file that ``ctnet export`` wrote.
        folds: Names like ``0`` or ``all``; None takes every fold that was trained to its end.

    Raises:
        DataError, PlanError, CheckpointError: If a file is missing, broken, of another plan, or would import code.
    """
    contents = read_bundle(source, folds) if source.is_file() else read_folder(source, folds)
    plans = _checked_plans(contents)
    dataset = checked(Dataset, contents.dataset, f"{contents.where}dataset.json", DataError)
    dataset_json = dataset.model_dump(exclude_unset=True)
    try:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(contents.configuration)
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise PlanError(f"{source}: plans.json or dataset.json cannot be used ({error!r}); copy it again") from None
    _check_together(contents, manager, configuration, dataset)
    network = _network(contents, configuration.configuration, channels, heads)
    for name, weights in zip(contents.names, contents.weights, strict=True):
        _check_fits(network, weights, name)
    network.load_state_dict(contents.weights[0])
    return Model(
        source=source,
        folds=contents.folds,
        weights=contents.weights,
        network=network,
        plans=manager,
        configuration=configuration,
        configuration_name=contents.configuration,
        dataset_json=dataset_json,
        trainer=contents.trainer,
        mirror_axes=contents.mirror_axes,
        hashes=contents.hashes,
        extras=contents.extras,
    )


def _checked_plans(contents: Contents) -> dict[str, Any]:
    """The plan with the one configuration that was trained, and nothing in it that the schema does not know."""
    where = f"{contents.where}plans.json"
    merged = merged_configuration(contents.plans, contents.configuration, where)
    if merged.get("previous_stage") is not None:
        raise PlanError(f"{where}: a cascade's second stage; predict it with nnUNetv2_predict")
    reduced = {**contents.plans, "configurations": {contents.configuration: merged}}
    plans = checked(Plans, reduced, where).model_dump(by_alias=True, exclude_unset=True)
    # nnU-Net asks for each channel's intensities, though most ways of normalising use none.
    known = plans.get("foreground_intensity_properties_per_channel", {})
    plans["foreground_intensity_properties_per_channel"] = {
        str(index): known.get(str(index), {}) for index in range(len(merged["normalization_schemes"]))
    }
    return plans


def _check_together(
    contents: Contents, manager: PlansManager, configuration: ConfigurationManager, dataset: Dataset
) -> None:
    intensities = manager.foreground_intensity_properties_per_channel
    where, channels = f"{contents.where}plans.json", len(dataset.channel_names)
    if len(configuration.normalization_schemes) != channels:
        raise PlanError(
            f"{where}: normalises {len(configuration.normalization_schemes)} channels, dataset.json has {channels}; "
            "take the model again"
        )
    for index, scheme in enumerate(configuration.normalization_schemes):
        if scheme == "CTNormalization" and not set(intensities[str(index)]) >= _CT_INTENSITIES:
            raise PlanError(
                f"{where}: lacks the intensities with which channel {index} is normalised; take the model again"
            )
    axes = contents.mirror_axes
    if axes and (len(set(axes)) != len(axes) or not set(axes) <= set(range(len(configuration.patch_size)))):
        raise CheckpointError(
            f"{contents.names[0]}: mirrors the axes {list(axes)[:8]}, which the patch does not have; take the model "
            "again"
        )


def _network(contents: Contents, configuration: Mapping[str, Any], channels: int, heads: int) -> nn.Module:
    """The plan's network, the CTNet that it translates to, or a fusion of two: whichever the weights are of.

    Built without memory first: a plan may declare a network of any size, and only one that the weights fill is made.
    """
    architecture, patch = configuration["architecture"], configuration["patch_size"]
    block = read_options(configuration.get("ctnet"), f"{contents.where}plans.json")
    options = block.transformer_options()
    if options is not None:
        checked(Transformer, {"stage": 0, **asdict(options)}, f"{contents.where}plans.json: ctnet.transformer")
    try:
        if OF_A_FUSION in contents.weights[0]:
            return _fitting_network(contents, [lambda: fusion_network(configuration, block.cross_modality, heads)])
        if contents.trainer == EARLY_FUSION:
            whole = partial(branch, configuration, block.cross_modality, channels, heads)
            return _fitting_network(contents, [whole])
        translated = as_ctnet(architecture, patch, options)
        candidates = [partial(network_from_plan, one, channels, heads, False) for one in (architecture, translated)]
        return _fitting_network(contents, candidates)
    except PlanError as error:
        raise PlanError(f"{contents.where}plans.json: {str(error).removeprefix('plan: ')}") from None


def _fitting_network(contents: Contents, candidates: Sequence[Callable[[], nn.Module]]) -> nn.Module:
    for build in candidates:
        with torch.device("meta"):
            network = build()
        if not _differences(network, contents.weights[0]):
            return build()
    with torch.device("meta"):
        network = candidates[0]()
    _check_fits(network, contents.weights[0], contents.names[0])
    raise AssertionError("unreachable: the line above raises")


def _differences(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    wanted = network.state_dict()
    differences = [item.key for item in compare_weights(wanted, weights)]
    differences += [k for k in wanted if k in weights and wanted[k].shape != weights[k].shape]
    return differences + [k for k in wanted if k not in differences and not _same_kind(wanted[k], weights.get(k))]


def _same_kind(wanted: Tensor, found: Tensor | None) -> bool:
    return found is not None and wanted.is_floating_point() == found.is_floating_point() and not found.is_complex()


def _check_fits(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    if differences := _differences(network, weights):
        raise CheckpointError(
            f"{name}: {len(differences)} tensors are not of plans.json's network (first: {differences[0]}); the "
            "checkpoint and the plans beside it do not belong together"
        )
    for key, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name}: {key} holds values that are not finite; train that fold again")
