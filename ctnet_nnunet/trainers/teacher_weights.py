"""A supervised checkpoint to start a teacher from: read, and compared with the training that wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from ctnet_nnunet.checkpoints import checked_weights, compare_weights, read_checkpoint
from ctnet_nnunet.errors import CheckpointError
from ctnet_nnunet.trainers.stock_hooks import difference_table

Kind = dict[str, Any]
REMEDY = "train the teacher with the same -d, -p and configuration"


@dataclass(frozen=True)
class Learner:
    """The training that wants a teacher.

    Attributes:
        dataset, fold: Its own.
        labelled: The cases whose labels it learns from.
        hides_labels: Whether a semi_split.json keeps those of other training cases from it.
    """

    dataset: str
    fold: int | str
    labelled: frozenset[str]
    hides_labels: bool


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


def teacher_weights(
    file: Path, wanted: Mapping[str, Tensor], kind: Kind, learner: Learner
) -> dict[str, Tensor]:
    """The weights in a supervised checkpoint, heads included, because these make the pseudo-labels.

    Args:
        file: Ours or stock nnU-Net's. One that does not say what it was trained on is compared by shapes alone.
        wanted: State dict of the teacher.
        kind: Of the training, from :func:`kind_of`.
        learner: The training.

    Raises:
        CheckpointError: It is missing, broken, a pretraining's, of another plan or dataset, or has learned from labels
            that this fold validates on or hides.
    """
    checkpoint = read_checkpoint(file)
    weights = checked_weights(checkpoint, file)
    own = checkpoint.get("ctnet")
    if isinstance(own, Mapping) and "pretext_state" in own:
        raise CheckpointError(
            f"{file}: semi_supervised.teacher_weights is a pretraining's, whose heads segment nothing yet; give it "
            "with -pretrained_weights and semi_supervised.teacher_from_pretrained=true"
        )
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
        _refuse_leaks(file, checkpoint, learner)
    return weights


def _refuse_leaks(file: Path, checkpoint: Mapping[str, Any], learner: Learner) -> None:
    """A teacher passes on what it has learned, so it must not have seen labels that the training is judged by."""
    arguments, own = checkpoint["init_args"], checkpoint.get("ctnet")
    if arguments["plans"].get("dataset_name") != learner.dataset:
        return
    fold = str(arguments.get("fold"))
    known = own.get("labelled_cases") if isinstance(own, Mapping) else None
    known = known if isinstance(known, list) else None
    if known is None and learner.hides_labels:
        raise CheckpointError(
            f"{file}: semi_supervised.teacher_weights does not say which cases it has learned from, so it may have "
            "seen labels that semi_split.json hides; train the teacher with -tr nnUNetTrainerSupervisedTwin"
        )
    if learner.fold != "all" and fold != str(learner.fold):
        raise CheckpointError(
            f"{file}: semi_supervised.teacher_weights was trained on fold {fold}, so it has seen labels of fold "
            f"{learner.fold}'s validation cases; write {{fold}} for the number in its path, and train one for each fold"
        )
    if others := sorted(set(map(str, known or [])) - learner.labelled):
        raise CheckpointError(
            f"{file}: semi_supervised.teacher_weights has learned from the labels of {others[0]}"
            f"{f' and {len(others) - 1} more' if others[1:] else ''}, which this training does not have; train "
            "the teacher with the same splits_final.json and semi_split.json"
        )


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
