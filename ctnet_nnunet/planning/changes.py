"""``--set key=value``: which keys there are, and where each one goes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ctnet_nnunet.errors import PlanError
from ctnet_nnunet.planning.options import CTNetOptions

NESTED_OPTIONS = ("transformer", "pretrain", "volf", "planes", "cmft", "cmff", "semi_supervised", "cross_modality")
PLANNER_KEYS = ("patch_size", "spacing", "features_base", "features_max")


@dataclass
class Changes:
    """Sorted changes.

    Attributes:
        options: Keys of the ``ctnet`` block.
        task_weights: Weights of single tasks (``pretext.rotation=0``), over the others as they are.
        planner: What the planner is told.
        direct: Values of the configuration by dotted name.
    """

    options: dict[str, Any] = field(default_factory=dict)
    task_weights: dict[str, Any] = field(default_factory=dict)
    planner: dict[str, Any] = field(default_factory=dict)
    direct: dict[str, Any] = field(default_factory=dict)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["epochs=20", "patch_size=[40,56,40]"]`` → keys and JSON values; what is no JSON stays text.

    Raises:
        PlanError: If an assignment has no ``=`` or a key stands twice.
    """
    parsed: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise PlanError(f"--set {assignment!r}: write it as key=value, for example --set epochs=100")
        if key in parsed:
            raise PlanError(f"--set {key}: given twice; keep one")
        try:
            parsed[key] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key] = text
    return parsed


def sort_changes(changes: Mapping[str, Any]) -> Changes:
    """Sort ``--set`` keys by where they go; a dotted name that is none of ours is looked up in the plan later."""
    result = Changes()
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if key == "preset":
            raise PlanError(f"--set preset={value}: give it as --preset {value}, which brings all of its values")
        if rest and first in changes:
            raise PlanError(f"--set {key}: {first} is set as a whole, too; keep one")
        if first == "pretext" and rest:
            result.task_weights[rest] = value
        elif first in NESTED_OPTIONS and rest:
            result.options.setdefault(first, {})[rest] = value
        elif key in CTNetOptions.model_fields:
            result.options[key] = value
        elif key in PLANNER_KEYS:
            result.planner[key] = _planner_value(key, value)
        else:
            result.direct[key] = value
    return result


def _planner_value(key: str, value: Any) -> Any:
    if key in ("features_base", "features_max"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PlanError(f"--set {key}={value!r}: a number of channels, 1 or more, is wanted")
        return value
    kind = int if key == "patch_size" else (int, float)
    lengths = (2, 3) if key == "patch_size" else (3,)
    good = isinstance(value, list) and len(value) in lengths
    if not good or not all(isinstance(item, kind) and not isinstance(item, bool) and item > 0 for item in value):
        wanted = "positive whole numbers, one per axis, for example patch_size=[40,56,40]"
        if key == "spacing":
            wanted = "three positive numbers in mm, of a 2d plan the slices' distance first: spacing=[1.0,0.5,0.5]"
        raise PlanError(f"--set {key}={value!r}: wants {wanted}")
    return value


def set_dotted(configuration: dict[str, Any], key: str, value: Any) -> None:
    """Replace a value that a configuration already has, by its dotted name.

    Raises:
        PlanError: If the name does not exist (the valid ones are listed) or the value is of another type.
    """
    *path, last = key.split(".")
    table: Any = configuration
    for part in path:
        table = table.get(part) if isinstance(table, dict) else None
    if not isinstance(table, dict) or last not in table:
        options = ", ".join([*CTNetOptions.model_fields, *PLANNER_KEYS, *dotted_names(configuration)])
        raise PlanError(f"--set {key}: unknown key; valid are {options}")
    old = table[last]
    if old is not None and not _same_kind(old, value):
        raise PlanError(f"--set {key}={value!r}: the plan's value is of another type ({old!r})")
    table[last] = value


def dotted_names(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of all values of a configuration, nested ones dotted; the ``ctnet`` block is left out."""
    names = []
    for key, value in table.items():
        if not prefix and key == "ctnet":
            continue
        names += dotted_names(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return names


def _same_kind(old: Any, new: Any) -> bool:
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, float):
        return isinstance(new, (int, float))
    if isinstance(old, (list, tuple)):
        return isinstance(new, (list, tuple))
    return isinstance(new, type(old))
