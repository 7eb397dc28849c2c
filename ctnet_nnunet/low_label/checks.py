"""What is looked at before a comparison trains anything: leaks, and whether every arm can be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import checked_weights, compare_weights, read_checkpoint
from ctnet_nnunet.errors import CheckpointError, CTNetError, DataError
from ctnet_nnunet.low_label.arms import Arm, Selection
from ctnet_nnunet.low_label.cases import (
    Draw,
    refuse_shared_patients,
    refuse_studies,
    refuse_unlabelled_contents,
    refuse_unlabelled_names,
)
from ctnet_nnunet.low_label.experiment import Settings
from ctnet_nnunet.low_label.plans import arm_plans, check_buildable, pretraining_plans
from ctnet_nnunet.planes.sidecar import FILE_NAME as PLANES_FILE
from ctnet_nnunet.planes.sidecar import read_sidecar
from ctnet_nnunet.unlabeled.cases import training_files, unlabelled_files
from ctnet_nnunet.unlabeled.copies import refuse_copies
from ctnet_nnunet.unlabeled.dataset import check_unlabeled_folder, unlabeled_identifiers
from ctnet_nnunet.unlabeled.target import Target

NEED_UNLABELLED = ("nnUNetTrainerMeanTeacher", "nnUNetTrainerReciprocal")


def refuse_leaks(target: Target, settings: Settings, left_out: Sequence[str]) -> None:
    """What is tested on, now or with the cases left out now, may be in no pretraining.

    Raises:
        DataError: A scan of imagesUn or a study of planes.json is of such a case; a patient is on both sides.
    """
    labelled_files = training_files(target.raw, target.dataset_json)
    scans = unlabelled_files(target)
    prepared = unlabeled_identifiers(target.folder)
    hidden = {"test case": settings.test, "left-out case": left_out}
    for what, cases in hidden.items():
        refuse_unlabelled_names(sorted({*scans.values(), *prepared}), cases, settings.patient_pattern, what)
        files = {file: case for case in cases for file in labelled_files.get(case, ()) if file.is_file()}
        refuse_unlabelled_contents(scans, files, what)
        # What was removed from imagesUn since is still pretrained on where it lies preprocessed.
        refuse_copies(target.folder, prepared, target.raw, target.dataset_json, cases, what)
    refuse_shared_patients(settings.pool, settings.test, settings.patient_pattern)
    sidecar = target.folder / PLANES_FILE
    if sidecar.is_file():
        # A labelled case is drawn from where it is in the pool, and only there; what else a study holds, always.
        labelled = {*settings.pool, *settings.test, *labelled_files}
        studies = read_sidecar(sidecar).studies.items()
        cut_out = [
            (name, study.group)
            for name, study in studies
            if {case for stack in study.stacks.values() for case in stack.cases} - labelled
        ]
        for what, cases in hidden.items():
            refuse_studies(cut_out, cases, settings.patient_pattern, what)


def check_arms(
    target: Target, configuration: Mapping[str, Any], settings: Settings, selection: Selection, draws: Sequence[Draw]
) -> None:
    """Build every arm's network and tasks once, and look for the data that it needs, before anything is trained.

    Raises:
        PlanError, DataError, CheckpointError: An arm cannot be trained; the message names it.
    """
    channels, classes = target.channels, len(target.dataset_json["labels"])
    for arm in selection.arms:
        plans = arm_plans(target.plans, configuration, settings, arm)
        try:
            check_buildable(plans, channels, classes, None)
            if arm.pretraining is not None:
                before = pretraining_plans(target.plans, configuration, settings, arm.network, arm.pretraining)
                check_buildable(before, channels, classes, arm.pretraining)
            _require_data(target, configuration, settings, arm, draws)
        except CTNetError as error:
            raise type(error)(f"arm {arm.name}: {error}") from None
        if arm.weights is not None:
            _check_weights(arm, plans, channels, classes)


def _check_weights(arm: Arm, plans: Mapping[str, Any], channels: int, classes: int) -> None:
    """A user's checkpoint must fit the arm's network, before anything is trained."""
    file = Path(str(arm.weights))
    weights = checked_weights(read_checkpoint(file), file)
    architecture = next(iter(plans["configurations"].values()))["architecture"]
    wanted = network_from_plan(architecture, channels, classes, True).state_dict()
    unfit = [item for item in compare_weights(wanted, weights) if item.wanted is not None]
    if unfit:
        first = unfit[0]
        raise CheckpointError(
            f"{arm.weights}: {len(unfit)} of {len(wanted)} tensors do not fit the network of {arm.name} (first: "
            f"{first.key}, {first.action}); bring it over with `ctnet transfer`"
        )


def _require_data(
    target: Target, configuration: Mapping[str, Any], settings: Settings, arm: Arm, draws: Sequence[Draw]
) -> None:
    """Raise DataError if the dataset lacks what an arm learns from."""
    preprocess = f"ctnet preprocess-unlabeled -d {target.dataset} -c {target.configuration} -p {settings.plans}"
    if arm.pretraining is not None:
        check_unlabeled_folder(target.folder, target.plans, configuration, preprocess, target.raw)
    if arm.pretraining is not None and "imaging_planes" in arm.pretraining.tasks:
        sidecar = target.folder / PLANES_FILE
        if not sidecar.is_file():
            raise DataError(
                f"{sidecar}: does not exist; put {PLANES_FILE} beside imagesUn (ctnet convert planes) and run "
                f"{preprocess}"
            )
    if arm.trainer in NEED_UNLABELLED:  # they read the pool's other images alone: semi_split.json leaves imagesUn out
        for draw in draws:
            if set(draw.cases) >= set(settings.pool):
                raise DataError(
                    f"--labels {draw.labels} labels every case of the pool, so none is left to learn from without its "
                    "label; ask for fewer labels"
                )
