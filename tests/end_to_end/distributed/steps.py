"""Two training steps of a trainer on batches that do not depend on how many processes share them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctnet_nnunet import ranks

BATCH, PATCH, CHANNELS = 4, {"3d_fullres": (16, 24, 24), "2d": (24, 24)}, 2
SCHEDULE = {"epochs": 2, "iterations": 2, "val_iterations": 1, "warmup_epochs": 0}
PAIRS = {"arch": "plan", "features": 4, "discriminator_levels": 3, "pool_size": 3, "pictures_every": 0}
SEMI = {"teacher_pretraining": 0.0, "student_from_teacher": False}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}


@dataclass(frozen=True)
class Run:
    """A trainer on a plan."""

    trainer: str
    block: Mapping[str, Any] = field(default_factory=dict)
    configuration: str = "3d_fullres"
    plans: str = "CTNetPlans"
    batch: int = BATCH
    batch_dice: bool = False
    labels: Mapping[str, Any] | None = None


def semi(**values: Any) -> dict[str, Any]:
    return {"semi_supervised": {**SEMI, **values}}


RUNS = {
    "CTNet": Run("nnUNetTrainerCTNet"),
    "CTNet, batch_dice": Run("nnUNetTrainerCTNet", batch_dice=True),
    "CTNet, 3 samples": Run("nnUNetTrainerCTNet", batch=3),
    "CTNet, ignore label": Run("nnUNetTrainerCTNet", labels={"background": 0, "a": 1, "b": 2, "ignore": 3}),
    "CTNet, regions, ignore label": Run("nnUNetTrainerCTNet", labels=REGIONS),
    "StockSGD": Run("nnUNetTrainerStockSGD"),
    "stock": Run("nnUNetTrainer", plans="nnUNetPlans"),
    "Pretrain": Run("nnUNetTrainerCTNetPretrain"),
    "VolF": Run("nnUNetTrainerVolF"),
    "ImagingPlanes": Run("nnUNetTrainerImagingPlanes", configuration="2d", plans="nnUNetPlans"),
    "CMFT": Run("nnUNetTrainerCMFT", {"cross_modality": PAIRS}, plans="nnUNetPlans"),
    "CMFF": Run("nnUNetTrainerCMFF", {"cross_modality": PAIRS}, plans="nnUNetPlans"),
    "EarlyFusion": Run("nnUNetTrainerEarlyFusion", {"cross_modality": PAIRS}, plans="nnUNetPlans"),
    "Reciprocal": Run("nnUNetTrainerReciprocal", semi()),
    "Reciprocal, rlsss": Run("nnUNetTrainerReciprocal", semi(preset="rlsss")),
    "MeanTeacher": Run("nnUNetTrainerMeanTeacher", semi(teacher_noise=0.0, consistency_rampup=0.0)),
    "SupervisedTwin": Run("nnUNetTrainerSupervisedTwin", semi()),
}


def built(run: Run, preprocessed: Path) -> Any:
    """The trainer, initialised, in float64 and without anything that draws within a network."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from ctnet_nnunet.nnunet_shim import ctnet_trainers
    from ctnet_nnunet.trainers.several_processes import SeveralProcesses

    plans = json.loads((preprocessed / f"{run.plans}.json").read_text())
    configuration = plans["configurations"][run.configuration]
    block = configuration.get("ctnet", {})
    configuration |= {"batch_size": run.batch, "batch_dice": run.batch_dice, "patch_size": PATCH[run.configuration]}
    if run.plans == "nnUNetPlans":
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [4 * 2**stage for stage in range(kwargs["n_stages"])]
    if run.trainer != "nnUNetTrainer":
        table = {**SCHEDULE, "batch_size": run.batch}
        tables = dict.fromkeys(("cmft", "cmff"), table)
        configuration["ctnet"] = {**block, **table, "mixed_precision": False, **tables, **run.block}
    plans["continue_training"] = False
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    if run.labels is not None:
        dataset |= {"labels": dict(run.labels), "regions_class_order": [1, 2]}
    stock = type("nnUNetTrainer", (SeveralProcesses, nnUNetTrainer), {})
    kind = getattr(ctnet_trainers, run.trainer, stock)
    torch.manual_seed(0)
    trainer = kind(plans, run.configuration, 0, dataset, torch.device("cpu"))
    with _hosts_without_a_study(trainer):
        trainer.initialize()
    for module in (trainer.network, getattr(trainer, "pretext", None), trainer.__dict__.get("teacher")):
        for part in () if module is None else module.modules():
            if "drop" in type(part).__name__.lower():
                part.__dict__.update({name: 0.0 for name in ("drop_prob", "p") if name in part.__dict__})
    if hasattr(trainer.loss, "weight_factors"):
        # Stock weighs the lowest output 1e-6 in place of 0 in a distributed training, which Adam makes much of.
        weights = np.array([*trainer.loss.weight_factors[:-1], 1e-6])
        trainer.loss.weight_factors = tuple(weights / weights.sum())
    trainer.highest_label = None
    trainer.dataloader_train = mock.Mock()
    return trainer


def _hosts_without_a_study(trainer: Any) -> Any:
    """Imaging planes read a study's geometry, of which the synthetic cases have none."""
    from ctnet_nnunet.trainers.planes_data import PlaneSettings

    if "Planes" not in type(trainer).__name__:
        return mock.MagicMock()
    trainer.plane_settings = PlaneSettings(("AX",), ("COR", "SAG"), 2.0, "middle", "largest")
    return mock.patch.object(trainer, "_pools", lambda: (None, None))


def drawn_over_all(trainer: Any) -> None:
    """Let pretext tasks draw for the whole batch in every process, and each take its part."""
    trainer.generator = torch.Generator().manual_seed(5)
    for task in trainer.pretext.tasks.values() if hasattr(trainer, "pretext") else ():
        task.sample = _whole_sample(task.sample)


def _whole_sample(sample: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    def over_all(views: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        whole = {name: torch.cat([view] * ranks.world_size()) for name, view in views.items()}
        return {name: ranks.own_part(value) for name, value in sample(whole, generator).items()}

    return over_all


def batch_of(run: Run, trainer: Any, step: int) -> dict[str, Any]:
    """The whole batch of a step, whatever the trainer reads of it."""
    generator = torch.Generator().manual_seed(100 + step)
    patch = PATCH[run.configuration]

    def images(*shape: int) -> Tensor:
        return torch.randn(*shape, *patch, generator=generator).double()

    labels = 4 if run.labels else 3
    # Half as many in the last samples, so that what is ignored, and every class, differs between the ranks.
    target = torch.randint(labels, (run.batch, 1, *patch), generator=generator)
    target[run.batch // 2 :, :, : patch[0] // 2] %= 2
    labelled = {
        "data": images(run.batch, CHANNELS),
        "target": _targets(trainer, run, target),
        "keys": ["a"] * run.batch,
    }
    if "semi_supervised" in run.block:
        return {"labelled": labelled, "unlabelled": {"data": images(run.batch, CHANNELS), "keys": ["b"] * run.batch}}
    valid = torch.tensor([[True, True], [False, True], [False, False], [False, True]])
    return {
        **labelled,
        "augmented": labelled["data"], "inside": labelled["data"],
        "usable": torch.tensor([True, False, True, True]),
        "pair": images(run.batch, 2, CHANNELS), "crop": labelled["data"], "host": labelled["data"],
        "heat": images(run.batch, 2).abs(), "heat_valid": valid,
        "location": torch.rand(4, generator=generator).double(), "location_valid": valid[:, 0],
    }  # fmt: skip


def _targets(trainer: Any, run: Run, target: Tensor) -> Any:
    """In the form in which nnU-Net's transforms give them: regions one by one, a list under deep supervision."""
    if run.labels is REGIONS:
        target = torch.cat([(target == 1) | (target == 2), target == 2, target == 3], 1)
    scales = trainer._get_deep_supervision_scales()
    if scales is None:
        return target
    sizes = [[round(edge * share) for edge, share in zip(target.shape[2:], scale, strict=True)] for scale in scales]
    return [F.interpolate(target.float(), size=size).to(target.dtype) for size in sizes]


def part_of(value: Any, share: slice) -> Any:
    if isinstance(value, Mapping):
        return {key: part_of(item, share) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [item[share] for item in value]
    return value[share]


def share_of(run: Run) -> slice:
    """The samples of this process, in stock nnU-Net's division: the first ranks have one more."""
    world, rank = ranks.world_size(), ranks.rank()
    sizes = [run.batch // world + (place < run.batch % world) for place in range(world)]
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def two_steps(run: Run, preprocessed: Path) -> dict[str, Any]:
    """Outputs of each step, the last one's gradients, all weights behind it, and what was logged."""
    trainer = built(run, preprocessed)
    drawn_over_all(trainer)
    if hasattr(trainer, "start_teacher"):
        trainer.start_teacher()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs: list[dict[str, Any]] = []
    trainer._epoch_outputs = outputs
    for step in range(2):
        batch = part_of(batch_of(run, trainer, step), share_of(run))
        outputs.append(trainer.train_step(copy.deepcopy(batch)))
    modules = _modules(trainer)
    gradients = {name: p.grad.clone() for name, p in _parameters(modules).items() if p.grad is not None}
    trainer.on_train_epoch_end([{**output, "loss": float(output["loss"])} for output in outputs])
    if not hasattr(trainer, "pretext") and "CMFT" not in run.trainer:
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            whole = batch_of(run, trainer, 7)
            part = part_of(whole.get("labelled", whole), share_of(run))
            trainer.on_validation_epoch_end([trainer.validation_step(part)])
    logged = {name: values[-1] for name, values in trainer.logger.get_checkpoint().items() if values}
    return {
        "outputs": [{name: float(value) for name, value in output.items()} for output in outputs],
        "gradients": gradients,
        "weights": {name: p.detach().clone() for name, p in _parameters(modules).items()},
        "logged": {
            name: float(logged[name]) for name in ("train_losses", "val_losses", "mean_fg_dice") if name in logged
        },
    }


def _modules(trainer: Any) -> dict[str, nn.Module]:
    from ctnet_nnunet.trainers.stock_hooks import unwrapped

    found = {"network": unwrapped(trainer.network)}
    for name in ("teacher", "pretext", "translators", "discriminators"):
        if isinstance(module := getattr(trainer, name, None), nn.Module):
            found[name] = module
    return found


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}


def run_all(rank: int | None, folder: Path, preprocessed: Path, names: Sequence[str]) -> None:
    """As one of two processes, or alone, and write what was found."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if rank is not None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name in names:
        torch.save(two_steps(RUNS[name], preprocessed), folder / f"{name}.{rank}.pt")
