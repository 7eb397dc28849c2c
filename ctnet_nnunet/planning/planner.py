"""nnU-Net's experiment planner with CTNet as the network and CTNet's memory in the loop that shrinks patch and batch.

nnU-Net looks planners up inside its own package only, so this one is run through the Python API (``ctnet plan``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from ctnet_nnunet.architectures.from_plan import as_ctnet
from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.memory import training_step_memory


class CTNetPlanner(ExperimentPlanner):  # type: ignore[misc]
    """Plans for CTNet; spacing, normalisation and resampling are stock, so stock preprocessed data fit.

    Args:
        dataset_name_or_id: The nnU-Net dataset.
        gpu_memory_target_in_gb: What a training step may take under bf16 autocast.
        plans_name: Name of the plans file without ending.
        overwrite_target_spacing: Spacing in mm in the image's axis order, before transposition.
        transformer: The transformer's size, None for none.
        patch_sizes: Patch size to keep for a configuration of that many axes, instead of searching one.
        features_base: Channels of the first stage; each stage doubles them.
        features_max: Limit of the doubling, None for nnU-Net's (320 in 3d, 512 in 2d).
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        plans_name: str = "CTNetPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        transformer: TransformerOptions | None = None,
        patch_sizes: Sequence[Sequence[int]] = (),
        features_base: int = 32,
        features_max: int | None = None,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            plans_name=plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
        )
        self.UNet_class = PlainConvUNet
        self.UNet_base_num_features = features_base
        if features_max is not None:
            self.UNet_max_features_2d = self.UNet_max_features_3d = features_max
        self.transformer = transformer
        self.patch_sizes = {len(patch): tuple(patch) for patch in patch_sizes}

    def static_estimate_VRAM_usage(
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """CTNet's memory in the unit of the stock loop, in which the reference value stands for the target.

        The stock loop shrinks the patch while fewer than two samples fit and sets the batch to what fits.
        """
        if min(patch_size) < 1 or len(arch_kwargs["strides"]) < 2:
            raise PlanError(
                f"{self.dataset_name}: {self.UNet_vram_target_GB} GB hold no patch of at least 8 voxels in two axes, "
                "or the scans have none; raise --gpu-memory or lower --set features_base"
            )
        block = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": arch_kwargs_req_import,
        }
        memory = training_step_memory(
            as_ctnet(block, patch_size, self.transformer), patch_size, 2, input_channels, output_channels, True
        )
        fits = 2 * (self.UNet_vram_target_GB * 2**30 - memory.states) / memory.activations
        if fits >= 2:  # the stock loop rounds the batch, to more than fits, too
            fits = math.floor(fits) + 1e-6
        two_d = len(patch_size) == 2
        reference = self.UNet_reference_val_2d if two_d else self.UNet_reference_val_3d
        reference_batch = self.UNet_reference_val_corresp_bs_2d if two_d else self.UNet_reference_val_corresp_bs_3d
        share = self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        return float(reference * share * reference_batch / max(fits, 1e-3))

    def get_plans_for_configuration(
        self,
        spacing: np.ndarray,
        median_shape: np.ndarray,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, float],
    ) -> dict[str, Any]:
        """Stock planning, then CTNet's architecture block; a patch size to keep replaces the searched one."""
        plan: dict[str, Any] = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if wanted := self.patch_sizes.get(len(spacing)):
            self._keep_patch(plan, spacing, wanted)
        plan["architecture"] = as_ctnet(plan["architecture"], plan["patch_size"], self.transformer)
        return plan

    def _keep_patch(self, plan: dict[str, Any], spacing: np.ndarray, wanted: tuple[int, ...]) -> None:
        """Give the plan this patch size, the topology that nnU-Net derives from it, and the smallest batch."""
        _, strides, kernels, padded, _ = get_pool_and_conv_props(
            spacing, wanted, self.UNet_featuremap_min_edge_length, 999999
        )
        if tuple(int(size) for size in padded) != wanted:
            raise PlanError(
                f"patch_size={list(wanted)} is not divisible by the strides that nnU-Net derives from it; "
                f"the next that is: {[int(size) for size in padded]}"
            )
        stages = len(strides)
        if stages < 2:
            raise PlanError(f"patch_size={list(wanted)}: too small for a U-Net; take 8 voxels or more in two axes")
        limit = self.UNet_max_features_2d if len(spacing) == 2 else self.UNet_max_features_3d
        plan["architecture"]["arch_kwargs"].update(
            n_stages=stages,
            kernel_sizes=kernels,
            strides=strides,
            features_per_stage=tuple(min(limit, self.UNet_base_num_features * 2**stage) for stage in range(stages)),
            n_conv_per_stage=self.UNet_blocks_per_stage_encoder[:stages],
            n_conv_per_stage_decoder=self.UNet_blocks_per_stage_decoder[: stages - 1],
        )
        plan["patch_size"] = wanted
        plan["batch_size"] = self.UNet_min_batch_size

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Our own identifier; ``ctnet plan`` puts stock's in its place where the preprocessed data would be equal."""
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Nothing is written here: ``ctnet plan`` first applies --set, checks the network, then writes atomically."""
