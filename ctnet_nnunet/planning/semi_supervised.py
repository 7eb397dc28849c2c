"""The ``semi_supervised`` table of the ``ctnet`` block: what reciprocal learning and its two references share.

Two presets: ``rlsss`` is the published method (cross-entropy, SGD, rotations by 90° and flips); ``nnunet``, the
default, the same idea under nnU-Net's losses, augmentation and deep supervision and this package's optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model, model_validator

from ctnet_nnunet.planning.fields import Count, CountOrZero, NotNegative, Positive, Seed, Share, Switch, fields_of
from ctnet_nnunet.semi_supervised.mean_teacher import MeanTeacherOptions
from ctnet_nnunet.semi_supervised.reciprocal import ReciprocalOptions

SEMI_SUPERVISED_PRESETS: dict[str, dict[str, Any]] = {
    "rlsss": {
        "loss": "ce",
        "deep_supervision": False,
        "augmentation": "rlsss",
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 1e-4,
        "warmup_epochs": 0,
        "feedback": "gradient",
        "teacher_pretraining": 0.5,
        "teacher_restarts": True,
        "student_from_teacher": False,
    },
    # Behind AdamW's step η⟨g_u, g_l⟩ would be of another step than the one taken.
    "nnunet": {
        "loss": "dice_ce",
        "deep_supervision": True,
        "augmentation": "nnunet",
        "optimizer": "adamw",
        "feedback": "finite_difference",
        # Of those tried (docs/experiments.md) the ones with the best student.
        "teacher_pretraining": 0.6,
        "student_from_teacher": True,
        # Thrown back to the full rate in the middle of its training it labels worse for the rest of it.
        "teacher_restarts": False,
    },
}
# The published mean of cross-entropy over voxels forgets structures of a few per cent of a patch; Dice does not.
DEFAULT_SEMI_SUPERVISED_PRESET: Literal["nnunet"] = "nnunet"
SCHEDULE_KEYS = (
    "epochs", "iterations", "val_iterations", "learning_rate", "warmup_epochs", "weight_decay", "seed", "save_minutes",
)  # fmt: skip


class SemiSupervisedBase(BaseModel):
    """Keys of the trainers; docs/reference/options.md says what each means. Schedule keys: None is the shared one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["rlsss", "nnunet"] = DEFAULT_SEMI_SUPERVISED_PRESET
    loss: Literal["ce", "dice_ce"]
    deep_supervision: Switch
    augmentation: Literal["rlsss", "nnunet"]
    optimizer: Literal["sgd", "adamw"]
    momentum: Share = 0.9
    batch_labelled: Count | None = None
    batch_unlabelled: Count | None = None
    teacher_pretraining: Share
    teacher_restarts: Switch
    teacher_weights: str | None = None
    teacher_from_pretrained: Switch | None = None
    recompute_teacher: Switch = False
    student_from_teacher: Switch
    student_finetune_epochs: CountOrZero = 0
    transductive: Switch = False
    predict_with: Literal["student", "teacher"] = "student"
    epochs: Count | None = None
    iterations: Count | None = None
    val_iterations: Count | None = None
    learning_rate: Positive | None = None
    warmup_epochs: NotNegative | None = None
    weight_decay: NotNegative | None = None
    seed: Seed | None = None
    save_minutes: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:
        """What is left out comes from the preset."""
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", DEFAULT_SEMI_SUPERVISED_PRESET)
        known = SEMI_SUPERVISED_PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {**known, **given}

    def own_schedule(self) -> dict[str, Any]:
        """The schedule keys that the table sets."""
        values = {key: getattr(self, key) for key in SCHEDULE_KEYS}
        return {key: value for key, value in values.items() if value is not None}

    def reciprocal(self) -> ReciprocalOptions:
        """Raises ValueError on a value out of range."""
        return ReciprocalOptions(**{field.name: getattr(self, field.name) for field in fields(ReciprocalOptions)})

    def mean_teacher(self) -> MeanTeacherOptions:
        """Raises ValueError on a value out of range."""
        return MeanTeacherOptions(**{field.name: getattr(self, field.name) for field in fields(MeanTeacherOptions)})


_UNITS = fields_of(ReciprocalOptions) | fields_of(MeanTeacherOptions)
SemiSupervised: type[SemiSupervisedBase] = create_model("SemiSupervised", __base__=SemiSupervisedBase, **_UNITS)
"""The table as a frozen pydantic model; the units' options are fields of it."""
