"""CTNet's memory in nnU-Net's planning loop, on fingerprints of larger scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.planning.memory import StepMemory, training_step_memory
from ctnet_nnunet.planning.planner import CTNetPlanner
from ctnet_nnunet.planning.write import PlannedConfiguration, write_plan
from tests.architectures.plan_table import BY_NAME
from tests.planning.conftest import TINY, Dataset

PLAN = BY_NAME["isotropic 3d"]
SMALL = {"features_base": 8, "transformer.depth": 1, "transformer.embed_dim": 24, "transformer.heads": 3}


def memory(patch: tuple[int, ...] = (32, 32, 32), batch: int = 2, mixed: bool = True, channels: int = 1) -> StepMemory:
    return training_step_memory(PLAN.block(), patch, batch, channels, 3, mixed)


def test_states_are_weights_gradients_and_two_moments() -> None:
    count = sum(parameter.numel() for parameter in PLAN.network().parameters())
    assert memory().states == 4 * 4 * count
    assert memory(batch=7, patch=(64, 64, 64)).states == memory().states


def test_activations_grow_with_batch_and_patch() -> None:
    assert memory(batch=4).activations == pytest.approx(2 * memory(batch=2).activations, rel=0.02)
    larger = memory(patch=(64, 32, 32))
    assert larger.activations == pytest.approx(2 * memory().activations, rel=0.1)
    assert larger.total == larger.states + larger.activations
    assert larger.gigabytes == pytest.approx(larger.total / 1024**3)


def test_bfloat16_takes_less_than_float32_and_more_than_half() -> None:
    assert (
        0.45 * memory(mixed=False).activations < memory(mixed=True).activations < 0.95 * memory(mixed=False).activations
    )


def test_the_transformer_costs_memory() -> None:
    with_it, without = memory(), training_step_memory(PLAN.block(None), (32, 32, 32), 2, 1, 3, True)
    assert with_it.states > without.states
    assert with_it.activations > without.activations


def test_nothing_is_allocated() -> None:
    huge = training_step_memory(PLAN.block(), (4096, 4096, 4096), 64, 1, 3, False)
    assert huge.gigabytes > 1e6


def planned(dataset: Dataset, gpu_memory: float, name: str) -> PlannedConfiguration:
    written = write_plan(dataset.id, "3d_fullres", gpu_memory=gpu_memory, changes=SMALL, name=name)
    return written.configurations[-1]


def test_more_memory_gives_a_larger_patch_or_batch_and_what_is_planned_fits(of_size: Callable[..., Dataset]) -> None:
    dataset = of_size((48, 64, 48))
    found = [planned(dataset, gpu_memory, f"Plans{index}") for index, gpu_memory in enumerate((0.05, 1.0))]
    voxels = [int(np.prod(item.patch_size)) for item in found]
    assert voxels == sorted(voxels)
    work = [size * item.batch_size for size, item in zip(voxels, found, strict=True)]
    assert work == sorted(work)
    assert voxels[0] < voxels[-1] == 48 * 64 * 48
    for item, limit in zip(found, (0.05, 1.0), strict=True):
        assert item.memory_gpu.gigabytes <= limit * 1.01
        assert item.batch_size >= 2


def test_the_transformer_counts_in_the_loop(dataset: Dataset) -> None:
    block = PLAN.unet_block()
    arguments = (PLAN.patch, 1, 3, block["network_class_name"], block["arch_kwargs"], block["_kw_requires_import"])
    planners = [CTNetPlanner(dataset.id, 0.05, transformer=size) for size in (None, TransformerOptions())]
    without, medium = (planner.static_estimate_VRAM_usage(*arguments) for planner in planners)
    # In the stock loop's unit: more than this and fewer than two samples fit, so the patch shrinks.
    limit = planners[0].UNet_reference_val_3d * 0.05 / planners[0].UNet_reference_val_corresp_GB
    assert without < limit < medium


def test_thin_scans_are_planned_and_never_pooled_along_the_thin_axis(of_size: Callable[..., Dataset]) -> None:
    written = write_plan(of_size((3, 96, 96), (5.0, 1.0, 1.0)).id, "3d_fullres", changes=TINY)
    assert written.configurations[0].patch_size[0] == 3


def test_a_cascade_brings_what_it_is_made_of(of_size: Callable[..., Dataset]) -> None:
    dataset = of_size((128, 128, 128))
    changes = {**TINY, "patch_size": [48, 48, 48]}
    written = write_plan(dataset.id, "3d_cascade_fullres", changes=changes)
    assert set(dataset.plans()["configurations"]) == {"3d_lowres", "3d_fullres", "3d_cascade_fullres"}
    assert {item.name for item in written.configurations} == {"3d_lowres", "3d_fullres"}
    assert dataset.configuration("3d_cascade_fullres")["inherits_from"] == "3d_fullres"
