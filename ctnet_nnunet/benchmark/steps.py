"""Training steps to measure: each network of the comparison on one plan, with real losses and optimisers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from ctnet_nnunet.architectures.from_plan import as_ctnet, network_from_plan
from ctnet_nnunet.benchmark.reciprocal import RECIPROCAL, reciprocal_step
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import PRESETS, read_options
from ctnet_nnunet.precision import autocast
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, build_pretext

UNET, RESENC, PRETRAIN = "PlainConvUNet", "ResEncUNet-M", "CTNet-m pretraining"
SUBJECTS = (UNET, RESENC, *(f"CTNet-{preset}" for preset in ("identity", "s", "m", "l")), PRETRAIN, *RECIPROCAL)
Step = Callable[[], None]


@dataclass(frozen=True)
class Workload:
    """What every network is given: ``patch_size`` voxels of 1 mm, ``batch_size``, ``channels``, ``classes``."""

    patch_size: tuple[int, ...]
    batch_size: int = 2
    features_base: int = 32
    channels: int = 1
    classes: int = 3

    def architecture(self, residual_encoder: bool = False) -> dict[str, Any]:
        """The architecture block that nnU-Net's planners would write for this patch."""
        dimensions = len(self.patch_size)
        _, strides, kernels, padded, _ = get_pool_and_conv_props([1.0] * dimensions, self.patch_size, 4, 999999)
        if tuple(int(size) for size in padded) != self.patch_size:
            nearest = [int(size) for size in padded]
            raise PlanError(f"--patch {list(self.patch_size)}: not divisible; the next that is: {nearest}")
        stages, limit = len(strides), 320 if dimensions == 3 else 512
        arguments: dict[str, Any] = {
            "n_stages": stages,
            "features_per_stage": [min(limit, self.features_base * 2**stage) for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage_decoder": [1 if residual_encoder else 2] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        if residual_encoder:
            arguments["n_blocks_per_stage"] = [1, 3, 4, *[6] * stages][:stages]
        else:
            arguments["n_conv_per_stage"] = [2] * stages
        kind = "ResidualEncoderUNet" if residual_encoder else "PlainConvUNet"
        name = f"dynamic_network_architectures.architectures.unet.{kind}"
        return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []}


def architecture_of(subject: str, workload: Workload) -> dict[str, Any]:
    """The architecture block of one of ``SUBJECTS``."""
    block = workload.architecture(residual_encoder=subject == RESENC)
    if subject in (UNET, RESENC, *RECIPROCAL):
        return block
    preset = "m" if subject == PRETRAIN else subject.removeprefix("CTNet-")
    assert preset in PRESETS
    return as_ctnet(block, workload.patch_size, read_options({"preset": preset}).transformer_options())


def make_step(subject: str, workload: Workload, device: torch.device, compiled: bool, mixed: bool = True) -> Step:
    """One training step of a subject, with AdamW and random data, as a function without arguments."""
    torch.manual_seed(0)
    architecture = architecture_of(subject, workload)
    network = network_from_plan(architecture, workload.channels, workload.classes, True).to(device)
    image = torch.randn(workload.batch_size, workload.channels, *workload.patch_size, device=device)
    if subject == PRETRAIN:
        return _pretraining_step(network, image, workload, device, compiled, mixed)
    loss, targets = _loss_and_targets(network, image, workload)
    if subject in RECIPROCAL:
        teacher = network_from_plan(architecture, workload.channels, workload.classes, True).to(device)
        context = functools.partial(autocast, device, mixed)
        return reciprocal_step(subject, network, teacher, image, loss, targets, context, compiled)
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, mixed):
            value = loss(forward(image), targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    return step


def _loss_and_targets(network: Any, image: torch.Tensor, workload: Workload) -> tuple[Any, list[torch.Tensor]]:
    """nnU-Net's Dice + cross-entropy under deep supervision, and random label maps at every resolution."""
    with torch.no_grad():
        shapes = [output.shape for output in network(image)]
    targets = [
        torch.randint(workload.classes, (shape[0], 1, *shape[2:]), device=image.device).float() for shape in shapes
    ]
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    base = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([1 / 2**index for index in range(len(shapes))])
    weights[-1] = 0
    return DeepSupervisionWrapper(base, weights / weights.sum()), targets


def _pretraining_step(
    network: Any, image: torch.Tensor, workload: Workload, device: torch.device, compiled: bool, mixed: bool
) -> Step:
    options = read_options({"preset": "m"})
    size = workload.patch_size
    context = PretextContext(size, size, (1.0,) * len(size), 0 if len(size) == 3 else None, workload.channels)
    model = build_pretext(PRETEXTS, network, context, options.pretext, options.model_dump()).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    usable = torch.ones(workload.batch_size, dtype=torch.bool, device=device)
    views = {"augmented": image, "inside": image, "usable": usable}

    def step() -> None:
        prepared = model.prepare(views, generator)
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, mixed):
            value = forward(prepared)["loss"]
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        model.after_step(0.5)

    return step


def describe(workload: Workload) -> str:
    """One line for the head of a table."""
    values = asdict(workload)
    patch = "x".join(map(str, values.pop("patch_size")))
    return f"patch {patch}, " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
