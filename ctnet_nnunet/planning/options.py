"""The typed ``ctnet`` block of a plan's configuration: every hyper-parameter of ours, and nowhere else.

A block may be partial or absent: what it leaves out comes from its preset (``m`` unless it names another), a JSON file
in top-level ``plans/``. Unknown and ill-typed keys are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ctnet_nnunet.architectures.transformer import TransformerOptions
from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.cross_modality import CrossModality, CrossModalityBase
from ctnet_nnunet.planning.fields import Count, CountOrZero, NotNegative, Positive, Seed, Share, Switch, fields_of
from ctnet_nnunet.planning.semi_supervised import SemiSupervised, SemiSupervisedBase
from ctnet_nnunet.pretext import PRETEXTS

PRESETS = ("s", "m", "l", "identity")
DEFAULT_PRESET = "m"
Mode = Literal["supervised", "pretrain", "volf", "planes", "semi_supervised", "cmft", "cmff"]
OVER_PRETRAIN: tuple[Mode, ...] = ("volf", "planes")
"""Modes whose table lies over that of ``pretrain``."""
PRETRAINING_MODES: tuple[Mode, ...] = ("pretrain", *OVER_PRETRAIN)
SCHEDULES: tuple[Mode, ...] = (*PRETRAINING_MODES, "cmft", "cmff")
"""Modes with a table of schedule keys of their own in the block."""
TABLES = ("semi_supervised", "cross_modality")
"""Tables that merge key by key and have no schedule's keys shared with them."""
_TYPE = re.compile(r"literal\[.*\]|int|float|bool|str")


class Schedule(BaseModel):
    """How one training runs.

    ``epochs`` of ``iterations`` steps and ``val_iterations`` validation steps; AdamW with ``learning_rate`` after
    ``warmup_epochs`` of linear warm-up (None: a tenth of the epochs and at most 10, in pretraining 5 % of them), and
    ``weight_decay``; ``batch_size`` None means the plan's; ``seed``; a checkpoint at least every ``save_minutes``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Count
    iterations: Count
    val_iterations: Count
    learning_rate: Positive
    warmup_epochs: NotNegative | None
    weight_decay: NotNegative
    batch_size: Count | None
    seed: Seed
    save_minutes: Positive


class _Transformer(BaseModel):
    """The fields of TransformerOptions with their limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embed_dim: Count
    depth: CountOrZero
    heads: Count
    mlp_ratio: Positive
    drop_path: Share
    reference_grid: Count
    residual_scale: NotNegative

    def options(self) -> TransformerOptions:
        return TransformerOptions(**self.model_dump())


class _Base(Schedule):
    """The block without the tasks' options.

    ``mixed_precision``: bf16 autocast where the device has it. ``encoder_rate``: factor on the learning rate of all but
    the decoder in supervised training; 0 freezes it.
    """

    preset: Literal["s", "m", "l", "identity"]
    transformer: _Transformer | None
    pretext: dict[str, NotNegative]
    pretrain: dict[str, Any]
    volf: dict[str, Any]
    planes: dict[str, Any]
    cmft: dict[str, Any]
    cmff: dict[str, Any]
    semi_supervised: SemiSupervisedBase
    cross_modality: CrossModalityBase
    mixed_precision: Switch
    encoder_rate: Annotated[float, Field(strict=True, ge=0, le=1)]

    def schedule(self, mode: Mode) -> Schedule:
        """The schedule of a mode: the shared keys under its own; ``volf`` and ``planes`` lie over ``pretrain``."""
        values = self._schedule_values(mode)
        return Schedule(**{**values, "warmup_epochs": self.warmup(mode, values["epochs"])})

    def warmup(self, mode: Mode, epochs: int) -> float:
        """Warm-up in epochs of a training, or of a phase with a rate of its own, that is ``epochs`` long."""
        wanted: float | None = self._schedule_values(mode)["warmup_epochs"]
        if wanted is not None:
            return wanted
        return epochs / 20 if mode in PRETRAINING_MODES else min(10, epochs / 10)

    def _schedule_values(self, mode: Mode) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in Schedule.model_fields}
        if mode in PRETRAINING_MODES:
            values |= self.pretrain
        if mode in SCHEDULES and mode != "pretrain":
            values |= getattr(self, mode)
        if mode == "semi_supervised":
            values |= self.semi_supervised.own_schedule()
        return values

    def own_tasks(self) -> dict[str, float] | None:
        """Task → weight above 0 as the block asks for them, or None where it asks for none or has its preset's.

        ``ctnet plan`` writes the preset's weights into every block, so that they stand there says nothing.
        """
        own = {task: weight for task, weight in self.pretext.items() if weight > 0}
        preset = {task: weight for task, weight in preset_block(self.preset)["pretext"].items() if weight > 0}
        return None if own in ({}, preset) else own

    def transformer_options(self) -> TransformerOptions | None:
        return None if self.transformer is None else self.transformer.options()


def _pretext_fields() -> dict[str, Any]:
    """Every field of every task's options as a key of the block."""
    return {name: field for task in PRETEXTS.values() for name, field in fields_of(task.Options).items()}


CTNetOptions: type[_Base] = create_model(
    "CTNetOptions",
    __base__=_Base,
    semi_supervised=(SemiSupervised, ...),
    cross_modality=(CrossModality, ...),
    **_pretext_fields(),
)
"""The block as a frozen pydantic model; the tasks' options are fields of it."""


def preset_block(name: str) -> dict[str, Any]:
    """The ``ctnet`` block of a preset file.

    Raises:
        PlanError: If there is no such preset.
    """
    if name not in PRESETS:
        raise PlanError(f"preset {name!r} does not exist; valid are {', '.join(PRESETS)}")
    text = resources.files("ctnet_nnunet.plans").joinpath(f"{name}.json").read_text(encoding="utf-8")
    block: dict[str, Any] = json.loads(text)["ctnet"]
    return block


def merged_block(preset: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's block under changes to it.

    A shared schedule key among the changes speaks for pretraining too, so the preset's own value for pretraining
    gives way, unless the changes hold one for pretraining; likewise for ``volf`` and ``planes``, for which ``pretrain``
    speaks too, and for ``cmft`` and ``cmff``. These tables, ``transformer``, ``semi_supervised`` and ``cross_modality``
    merge key by key; ``pretext`` is replaced whole, so that naming the tasks to train with leaves the others out.

    Raises:
        PlanError: If one of the tables is none.
    """
    merged = {**preset, **changes}
    for mode in SCHEDULES:
        own = changes.get(mode) or {}
        if not isinstance(own, Mapping):
            raise PlanError(f"ctnet option {mode}={own!r}: a schedule's keys are wanted, for example {mode}.epochs=100")
        spoken_for = {*changes, *(changes.get("pretrain") or {} if mode in OVER_PRETRAIN else {})}
        kept = {key: value for key, value in preset.get(mode, {}).items() if key not in spoken_for}
        merged[mode] = {**kept, **own}
    for name in TABLES:
        table = changes.get(name) or {}
        if not isinstance(table, Mapping):
            raise PlanError(f"ctnet option {name}={table!r}: a table of keys is wanted, see options.md")
        merged[name] = {**preset.get(name, {}), **table}
    if isinstance(changes.get("transformer"), Mapping):
        own = preset.get("transformer") or asdict(TransformerOptions())
        merged["transformer"] = {**own, **changes["transformer"]}
    return merged


def read_options(block: Mapping[str, Any] | None, where: str = "plan") -> _Base:
    """Type a block, its preset filling what it leaves out.

    Args:
        block: The ``ctnet`` block of a configuration, or None.
        where: What to name in errors, for example the plans file.

    Raises:
        PlanError: On an unknown key (valid ones listed) or an ill-typed value.
    """
    block = block or {}
    if not isinstance(block, Mapping):
        raise PlanError(f"{where}: the ctnet block is {type(block).__name__}, not a table of keys")
    complete = merged_block(preset_block(block.get("preset", DEFAULT_PRESET)), block)
    _refuse_unknown(complete, CTNetOptions.model_fields, where)
    for mode in SCHEDULES:
        _refuse_unknown(complete[mode], Schedule.model_fields, where, f"{mode}.")
    _refuse_unknown(complete["semi_supervised"], SemiSupervised.model_fields, where, "semi_supervised.")
    _refuse_unknown(complete["cross_modality"], CrossModality.model_fields, where, "cross_modality.")
    if isinstance(complete["pretext"], Mapping):
        _refuse_unknown(complete["pretext"], PRETEXTS, where, "pretext.")
    if isinstance(complete["transformer"], Mapping):
        _refuse_unknown(complete["transformer"], _Transformer.model_fields, where, "transformer.")
    try:
        options = CTNetOptions(**complete)
        options.transformer_options()
    except ValidationError as error:
        raise _ill_typed(error, where) from None
    except ValueError as error:
        raise PlanError(f"{where}: ctnet option transformer: {error}") from None
    _check_task_options(options, where)
    for mode in SCHEDULES:
        try:
            options.schedule(mode)
        except ValidationError as error:
            raise _ill_typed(error, where, f"{mode}.") from None
    return options


def _ill_typed(error: ValidationError, where: str, prefix: str = "") -> PlanError:
    first = error.errors()[0]
    key = _key_of(first["loc"])
    # A value of several possible types has an error for each of them.
    said = " or ".join(dict.fromkeys(item["msg"].lower() for item in error.errors() if _key_of(item["loc"]) == key))
    return PlanError(f"{where}: ctnet option {prefix}{key}={first['input']!r}: {said}")


def _key_of(place: Sequence[int | str]) -> str:
    """An error's place as an option's name, without the type that pydantic tried."""
    return ".".join(str(part) for part in place if not _TYPE.fullmatch(str(part)))


def _check_task_options(options: _Base, where: str) -> None:
    """The limits that the tasks themselves set, so that a bad value is refused when planning, not when training."""
    for task in PRETEXTS.values():
        try:
            task.Options(**{field.name: getattr(options, field.name) for field in fields(task.Options)})
        except ValueError as error:
            raise PlanError(f"{where}: ctnet option {error}") from None
    try:
        options.semi_supervised.reciprocal()
        options.semi_supervised.mean_teacher()
    except ValueError as error:
        raise PlanError(f"{where}: ctnet option semi_supervised.{error}") from None
    try:
        options.cross_modality.transition()
    except ValueError as error:
        raise PlanError(f"{where}: ctnet option cross_modality.{error}") from None


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], where: str, prefix: str = "") -> None:
    if unknown := sorted(set(given) - set(known)):
        names = ", ".join(f"{prefix}{key}" for key in known)
        raise PlanError(f"{where}: unknown ctnet option {prefix}{unknown[0]}; valid are {names}")
