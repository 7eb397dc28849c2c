"""A model whose answer is known: label k where the intensity is nearest to k. A real U-Net with weights set by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import write_checkpoint

_CONV, _UNET = "torch.nn.modules.conv.Conv3d", "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def write_model(
    folder: Path,
    labels: Sequence[str],
    channels: Sequence[str] = ("image",),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    patch: Sequence[int] = (8, 8, 8),
) -> Path:
    """Write a model's folder: voxels of 1 mm are not resampled, so that each voxel is judged by itself.

    The first channel's value passes through the first level of the U-Net and its skip connection; the head's logit of
    label k is 2kx - k², which is largest for the k nearest to x.
    """
    architecture: dict[str, Any] = {
        "network_class_name": _UNET,
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [2, 2], "conv_op": _CONV, "kernel_sizes": [[1, 1, 1]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
            "conv_bias": True, "norm_op": None, "norm_op_kwargs": None, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": None, "nonlin_kwargs": None,
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    network = network_from_plan(architecture, len(channels), len(labels) + 1, True)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    for key, value in state.items():
        convolution = key.endswith(("convs.0.conv.weight", "convs.0.all_modules.0.weight"))
        if convolution and "encoder.stages.0." in key:
            value[0, 0] = 1
        if convolution and key.startswith("decoder.stages.0."):
            value[0, 2] = 1  # behind the two upsampled features lies the skip connection
        if key.endswith("seg_layers.0.weight"):
            value[:, 0] = 2.0 * torch.arange(len(labels) + 1.0).reshape(-1, 1, 1, 1)
        if key.endswith("seg_layers.0.bias"):
            value[:] = -(torch.arange(len(labels) + 1.0) ** 2)
    content = {
        "network_weights": state,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    (folder / "fold_0").mkdir(parents=True)
    write_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(_plans(architecture, len(channels), spacing, patch)))
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(number): name for number, name in enumerate(channels)},
                "labels": {"background": 0, **{name: number for number, name in enumerate(labels, start=1)}},
                "numTraining": 5,
                "file_ending": ".nii.gz",
            }
        )
    )
    return folder


def _plans(
    architecture: dict[str, Any], channels: int, spacing: Sequence[float], patch: Sequence[int]
) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(patch), "median_image_size_in_voxels": list(patch), "spacing": list(spacing),
        "normalization_schemes": ["NoNormalization"] * channels, "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling, "architecture": architecture, "batch_dice": False,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset742_Threshold", "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": list(spacing), "original_median_shape_after_transp": list(patch),
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration}, "foreground_intensity_properties_per_channel": {},
    }  # fmt: skip
