"""From a plan's ``architecture`` block to a network, through a fixed table: no name out of a file is ever imported.

Stock nnU-Net locates the class that plans.json names, so a hostile plan can run code. Here a name is only a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from ctnet_nnunet.architectures.ctnet import CTNet, choose_transformer_stage, cumulative_strides
from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.errors import PlanError

CTNET_CLASS_NAME = "ctnet_nnunet.architectures.ctnet.CTNet"
NETWORKS: dict[str, type[nn.Module]] = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": PlainConvUNet,
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": ResidualEncoderUNet,
    CTNET_CLASS_NAME: CTNet,
}
_OPERATORS = (
    nn.Conv2d, nn.Conv3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.Dropout2d, nn.Dropout3d, nn.LeakyReLU, nn.ReLU, nn.GELU, nn.SiLU,
)  # fmt: skip
OPERATORS: dict[str, type[nn.Module]] = {
    f"{prefix}.{operator.__name__}": operator for operator in _OPERATORS for prefix in ("torch.nn", operator.__module__)
}


def network_from_plan(
    architecture: Mapping[str, Any], input_channels: int, num_classes: int, deep_supervision: bool
) -> nn.Module:
    """Build and initialise the network that a plan's ``architecture`` block describes.

    Raises:
        PlanError: If the class or an operator is not in the fixed table, or an argument is missing or unknown.
    """
    network_class = NETWORKS[checked_class_name(architecture)]
    arguments = _resolved_arguments(architecture)
    try:
        network = network_class(
            input_channels=input_channels, num_classes=num_classes, deep_supervision=deep_supervision, **arguments
        )
    except (TypeError, ValueError, AssertionError, LookupError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlanError(
            f"plan: architecture.arch_kwargs do not fit {network_class.__name__}: {reason}; plan again (`ctnet plan`)"
        ) from error
    initialised: nn.Module = network.apply(network.initialize)  # type: ignore[arg-type] # a static method of the class
    return initialised


def as_ctnet(
    architecture: Mapping[str, Any], patch_size: Sequence[int], transformer: TransformerOptions | None
) -> dict[str, Any]:
    """Translate a U-Net's ``architecture`` block into CTNet's; a CTNet block is returned as it is.

    Args:
        architecture: The block of a plan's configuration.
        patch_size: The plan's patch in voxels; with the strides it decides the transformer's stage.
        transformer: The transformer's size, or None for none (preset ``identity``).

    Raises:
        PlanError: If the class is unknown, strides are missing, or the patch is not divisible by them.
    """
    name = checked_class_name(architecture)
    check_patch(architecture, patch_size)
    if name == CTNET_CLASS_NAME:
        return dict(architecture)
    arguments = dict(architecture["arch_kwargs"])
    if transformer is not None:
        stage = choose_transformer_stage(arguments["strides"], patch_size)
        arguments["transformer"] = {"stage": stage, **asdict(transformer)}
    else:
        arguments["transformer"] = None
    return {**architecture, "network_class_name": CTNET_CLASS_NAME, "arch_kwargs": arguments}


def as_unet(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The ``architecture`` block of the U-Net inside a CTNet block; a U-Net's block is returned as it is.

    Raises:
        PlanError: If the class is unknown.
    """
    if checked_class_name(architecture) != CTNET_CLASS_NAME:
        return dict(architecture)
    arguments = {key: value for key, value in architecture["arch_kwargs"].items() if key != "transformer"}
    kind = ResidualEncoderUNet if "n_blocks_per_stage" in arguments else PlainConvUNet
    name = next(name for name, network in NETWORKS.items() if network is kind)
    return {**architecture, "network_class_name": name, "arch_kwargs": arguments}


def checked_class_name(architecture: Mapping[str, Any]) -> str:
    """The ``network_class_name`` of a block, if it is one of the fixed table.

    Raises:
        PlanError: If it is not; the message lists the classes that are.
    """
    name = architecture.get("network_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        known = ", ".join(key.rsplit(".", 1)[1] for key in NETWORKS)
        raise PlanError(f"plan: network class {name!r} is not supported; plan with one of {known}")
    return name


def check_patch(architecture: Mapping[str, Any], patch_size: Sequence[int]) -> None:
    """Raise PlanError unless the plan has strides and the patch is divisible by their product on every axis."""
    strides = architecture.get("arch_kwargs", {}).get("strides")
    if not isinstance(strides, Sequence) or isinstance(strides, str) or not strides:
        raise PlanError(
            "plan: architecture.arch_kwargs has no strides; plan again with `ctnet plan` or nnU-Net's planner"
        )
    try:
        total = cumulative_strides(strides)[-1]
    except (TypeError, ValueError):
        raise PlanError(f"plan: architecture.arch_kwargs.strides {strides!r} are not one list per stage") from None
    if len(total) != len(patch_size):
        raise PlanError(
            f"plan: patch_size {list(patch_size)} has {len(patch_size)} axes, its strides have {len(total)}"
        )
    if any(size % stride for size, stride in zip(patch_size, total, strict=True)):
        raise PlanError(
            f"plan: patch_size {list(patch_size)} is not divisible by the cumulative strides {list(total)}; "
            "choose a multiple on every axis"
        )


def _resolved_arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(architecture.get("arch_kwargs", {}))
    for key in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        name = arguments.get(key)
        if name is None:
            continue
        if not isinstance(name, str) or name not in OPERATORS:
            raise PlanError(f"plan: arch_kwargs.{key} {name!r} is not supported; use one of {sorted(OPERATORS)}")
        arguments[key] = OPERATORS[name]
    foreign = set(architecture.get("_kw_requires_import", ())) - {"conv_op", "norm_op", "dropout_op", "nonlin", "block"}
    if foreign or "block" in arguments:
        named = sorted(foreign | ({"block"} & set(arguments)))
        raise PlanError(f"plan: arch_kwargs {named} would import a class; not allowed")
    return arguments
