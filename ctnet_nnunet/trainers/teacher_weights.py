"""A supervised checkpoint to start a teacher from: read, and compared with the training that wants it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from ctnet_nnunet.checkpoints import compare_weights, read_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.stock_hooks import difference_table

Kind = dict[str, Any]
REMEDY = "train the teacher with the same -d, -p and configuration"


def kind_of(plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset: Mapping[str, Any]) -> Kind:
    """What networks of equal shapes may differ in, so that one's labels are wrong on the other's images.

    Args:
        plans: The whole plans.
        configuration: The resolved block.
        dataset: dataset.json.

    Raises:
        KeyError: A part is missing.
    """
    labels = dataset["labels"]
    # Regions are channels in the order of dataset.json; classes have numbers.
    ordered = list(labels.items()) if any(isinstance(value, (list, tuple)) for value in labels.values()) else labels
    return {
        "labels": _plain(ordered),
        "transpose_forward": _plain(plans["transpose_forward"]),
        "spacing": _plain(configuration["spacing"]),
        "normalization_schemes": _plain(configuration["normalization_schemes"]),
    }


def teacher_weights(file: Path, wanted: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The weights in a supervised checkpoint, heads included, because these make the pseudo-labels.

    Args:
        file: Ours or stock nnU-Net's. One that does not say what it was trained on is compared by shapes alone.
        wanted: State dict of the teacher.
        kind: Of the training, from :func:`kind_of`.

    Raises:
        CheckpointError: It is missing, broken, or of another plan or dataset.
    """
    checkpoint = read_checkpoint(file)
    weights: dict[str, Tensor] = checkpoint["network_weights"]
    differ = [key for key in {*weights, *wanted} if _shape(weights.get(key)) != _shape(wanted.get(key))]
    if differ:
        print(difference_table(compare_weights(wanted, weights)))
        raise CheckpointError(
            f"{file}: semi_supervised.teacher_weights is of another plan or dataset, {len(differ)} of {len(wanted)} "
            f"tensors differ (first: {min(differ)}); {REMEDY}"
        )
    if checkpoint.get("init_args"):
        found = _kind_of_file(file, checkpoint["init_args"])
        if other := [name for name, value in kind.items() if found[name] != value]:
            raise CheckpointError(
                f"{file}: semi_supervised.teacher_weights was trained on {other[0]} {found[other[0]]}, this plan has "
                f"{kind[other[0]]}; {REMEDY}"
            )
    return weights


def _kind_of_file(file: Path, arguments: Any) -> Kind:
    try:
        plans, name = arguments["plans"], arguments["configuration"]
        block = PlansManager(plans).get_configuration(name).configuration
        return kind_of(plans, block, arguments["dataset_json"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: what it says of its plans and dataset cannot be read ({type(error).__name__}: {error}); {REMEDY}"
        ) from None


def _plain(value: Any) -> Any:
    """Tuples as lists: a checkpoint keeps what JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
