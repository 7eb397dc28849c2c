"""The arms' plans: the base plan with another network and ``ctnet`` block, all else the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctnet_nnunet.architectures.from_plan import as_ctnet, as_unet, network_from_plan
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.low_label.arms import Arm, Network, Pretraining
from ctnet_nnunet.low_label.experiment import Settings
from ctnet_nnunet.planning.changes import parse_assignments, sort_changes
from ctnet_nnunet.planning.options import (
    DEFAULT_PRESET,
    PRETRAINING_MODES,
    Mode,
    merged_block,
    preset_block,
    read_options,
)
from ctnet_nnunet.pretext import PRETEXTS
from ctnet_nnunet.pretext.base import PretextContext, build_pretext

DECIDED_HERE = {
    "epochs": "--epochs",
    "iterations": "--iterations",
    "pretext": "--arms",
    "seed": "--seed",
}
MODES = (*PRETRAINING_MODES, "semi_supervised")


def options_for_all(assignments: list[str]) -> dict[str, Any]:
    """``--set KEY=VALUE`` as changes to the ``ctnet`` block.

    Raises:
        PlanError: On a key that the benchmark decides itself, or that belongs to the base plan.
    """
    changes = sort_changes(parse_assignments(assignments))
    for key in [*changes.planner, *changes.direct]:
        raise PlanError(f"--set {key}: belongs to the base plan; make one with `ctnet plan --set` and name it with -p")
    if changes.task_weights:
        raise PlanError("--set pretext: the arms decide it; choose them with --arms")
    for key, option in DECIDED_HERE.items():
        inside = [mode for mode in MODES if key in changes.options.get(mode, {})]
        if key in changes.options or inside:
            raise PlanError(f"--set {inside[0] + '.' if inside else ''}{key}: give it with {option}")
    return changes.options


def preset_of(configuration: Mapping[str, Any], wanted: str | None) -> str:
    """The preset that was asked for, else the base plan's, else the default."""
    found: str = wanted or configuration.get("ctnet", {}).get("preset", DEFAULT_PRESET)
    preset_block(found)
    return found


def arm_plans(
    base: Mapping[str, Any], configuration: Mapping[str, Any], settings: Settings, arm: Arm
) -> dict[str, Any]:
    """The plans file of an arm's supervised training."""
    plans = _plans(base, configuration, settings, arm.plans, arm.network, None)
    if arm.semi_supervised and (arm.pretraining is not None or arm.weights is not None):
        block = plans["configurations"][settings.configuration]["ctnet"]
        if block["semi_supervised"].get("teacher_weights") is not None:
            raise PlanError(
                f"arm {arm.name}: its teacher would start from the pretraining and from --set "
                "semi_supervised.teacher_weights; leave one of them out"
            )
        block["semi_supervised"] = {**block["semi_supervised"], "teacher_from_pretrained": True}
    return plans


def pretraining_plans(
    base: Mapping[str, Any],
    configuration: Mapping[str, Any],
    settings: Settings,
    network: Network,
    pretraining: Pretraining,
) -> dict[str, Any]:
    """The plans file of a pretraining."""
    name = pretraining_plans_name(network, pretraining)
    return _plans(base, configuration, settings, name, network, pretraining)


def pretraining_plans_name(network: Network, pretraining: Pretraining) -> str:
    """Arms that share network and tasks share their pretraining."""
    return f"pre_{network}_{pretraining.name}"


def check_buildable(plans: Mapping[str, Any], channels: int, classes: int, pretraining: Pretraining | None) -> None:
    """Build the network and the pretext tasks once, before anything is trained.

    Raises:
        PlanError: If the plan's network or patch does not do for them.
    """
    configuration = next(iter(plans["configurations"].values()))
    network = network_from_plan(configuration["architecture"], channels, classes, True)
    if pretraining is None:
        return
    patch = tuple(configuration["patch_size"])
    axial = list(plans["transpose_forward"]).index(0) if len(patch) == 3 else None
    options = read_options(configuration["ctnet"], f"plans {plans['plans_name']}")
    mode: Mode = "volf" if pretraining.trainer == "nnUNetTrainerVolF" else "pretrain"
    batch = options.schedule(mode).batch_size or int(configuration["batch_size"])
    context = PretextContext(patch, patch, tuple(configuration["spacing"]), axial, channels, batch)
    build_pretext(PRETEXTS, network, context, pretraining.tasks, options.model_dump())


def _plans(
    base: Mapping[str, Any],
    configuration: Mapping[str, Any],
    settings: Settings,
    name: str,
    network: Network,
    pretraining: Pretraining | None,
) -> dict[str, Any]:
    block = _block(configuration, settings, network, pretraining)
    options = read_options(block, f"plans {name}")
    architecture = as_unet(configuration["architecture"])
    if network != "unet":
        architecture = as_ctnet(architecture, configuration["patch_size"], options.transformer_options())
    own = {key: value for key, value in configuration.items() if key not in ("inherits_from", "ctnet")}
    own |= {"architecture": architecture, "ctnet": block}
    return {**base, "plans_name": name, "configurations": {settings.configuration: own}}


def _block(
    configuration: Mapping[str, Any], settings: Settings, network: Network, pretraining: Pretraining | None
) -> dict[str, Any]:
    own = configuration.get("ctnet", {})
    base = preset_block(settings.preset)
    if own.get("preset", DEFAULT_PRESET) == settings.preset:
        base = merged_block(base, own)
    iterations = settings.per_epoch(settings.iterations)
    changes: dict[str, Any] = {
        "val_iterations": max(2, iterations // 10),
        **settings.options,
        "epochs": settings.epochs,
        "iterations": iterations,
        "seed": settings.seed,
    }
    # Without a pretraining nothing reads the length of one.
    pretraining_length = settings.pretrain_iterations or settings.iterations
    length = {"epochs": settings.epochs, "iterations": settings.per_epoch(pretraining_length)}
    changes["pretrain"] = {"val_iterations": 2, **settings.options.get("pretrain", {}), **length}
    if pretraining is not None:
        changes |= {**pretraining.options, "pretext": dict(pretraining.tasks)}
    block = merged_block(base, changes)
    # A base plan may hold lengths for volume fusion, imaging planes or semi-supervised learning alone.
    for mode in ("volf", "planes", "semi_supervised"):
        block[mode] = {key: value for key, value in block[mode].items() if key not in (*length, "seed")}
    if network != "ctnet":
        block |= {"preset": "identity", "transformer": None}
    return block
