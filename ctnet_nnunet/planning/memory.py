"""How much memory one training step of a plan's network takes, found without allocating it.

The forward pass runs on fake tensors (shapes only) and every storage that autograd keeps is summed; parameters count
four times (weights, gradients and AdamW's two moments); the backward pass of the largest layer adds the transient
part. docs/benchmarks.md compares this with measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from ctnet_nnunet.architectures.from_plan import network_from_plan

# At its peak the backward pass holds, beyond what the forward pass kept, the gradients of the largest layer's output
# and input and a workspace of about the same size.
TRANSIENT_TENSORS = 3
STATES_PER_PARAMETER = 4


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step: ``states`` do not depend on the batch, ``activations`` grow with it."""

    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations

    @property
    def gigabytes(self) -> float:
        return self.total / 2**30


def training_step_memory(
    architecture: Mapping[str, Any],
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    num_classes: int,
    mixed_precision: bool,
) -> StepMemory:
    """Memory of a supervised training step with deep supervision and AdamW.

    Args:
        architecture: The plan's ``architecture`` block.
        patch_size: Voxels per axis.
        batch_size: Samples per step.
        input_channels: Channels of the image.
        num_classes: Channels of the logits.
        mixed_precision: True for bf16 autocast, as on CUDA; False for float32, as on the CPU.

    Raises:
        PlanError: If the block does not describe a network of the fixed table.
    """
    with FakeTensorMode():
        network = network_from_plan(architecture, input_channels, num_classes, deep_supervision=True)
        parameters = list(network.parameters())
        image = torch.empty(batch_size, input_channels, *patch_size)
        kept = _kept_bytes(network, image, parameters, mixed_precision)
        states = STATES_PER_PARAMETER * sum(parameter.untyped_storage().nbytes() for parameter in parameters)
    return StepMemory(states=states, activations=sum(kept) + TRANSIENT_TENSORS * max(kept))


def _kept_bytes(
    network: torch.nn.Module, image: torch.Tensor, parameters: list[torch.nn.Parameter], mixed_precision: bool
) -> list[int]:
    """Sizes of the distinct storages that autograd keeps between forward and backward, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision),
    ):
        for logits in network(image):
            target = torch.empty(logits.shape[0], *logits.shape[2:], dtype=torch.long)
            F.cross_entropy(logits.float(), target)
    return [tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own]
