"""What a model's folder or bundle holds, read but not yet judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.inference.schema import DatasetFingerprint, ReferenceVolumes

EXTRAS: dict[str, type[BaseModel]] = {
    "dataset_fingerprint.json": DatasetFingerprint,
    "reference_volumes.json": ReferenceVolumes,
}
"""What describes the training beyond plan and dataset: file → its schema. Missing ones are no error."""
_LONGEST_NAME = 256


@dataclass(frozen=True)
class Contents:
    """``names`` says where each fold's weights lie, ``where`` stands before a JSON file's name, both for errors."""

    where: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...] | None
    folds: tuple[str, ...]
    names: tuple[str, ...]
    weights: list[Mapping[str, Tensor]]
    hashes: dict[str, str]
    extras: dict[str, dict[str, Any]] = field(default_factory=dict)


def checked_axes(axes: object, name: str) -> tuple[int, ...] | None:
    """Axes of test-time mirroring as a file says them.

    Raises:
        CheckpointError: If they are neither nothing nor a few small numbers; ``name`` says where.
    """
    if axes is None or axes == [] or axes == ():
        return None
    if isinstance(axes, (list, tuple)) and len(axes) <= 3 and all(type(axis) is int for axis in axes):
        return tuple(axes)
    raise CheckpointError(f"{name}: its axes of test-time mirroring are no list of numbers; take the model again")


def checked_name(value: object, what: str, name: str) -> str:
    """A short text out of a file.

    Raises:
        CheckpointError: If it is something else; ``name`` says where.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise CheckpointError(f"{name}: its {what} is no short text; take the model again")
    return value


def checked_weights(weights: object, name: str) -> Mapping[str, Tensor]:
    """A table of tensors.

    Raises:
        CheckpointError: If it is something else; ``name`` says where.
    """
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise CheckpointError(f"{name}: its network_weights are no table of tensors; take the model again")
    return weights
