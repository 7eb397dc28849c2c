"""``run_comparison``: check everything, lay the folder out, train, score, write the pages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.architectures.from_plan import network_from_plan
from ctnet_nnunet.checkpoints import compare_weights, read_checkpoint
from ctnet_nnunet.cores import usable_cores
from ctnet_nnunet.errors import CheckpointError, CTNetError, DataError, SetupError
from ctnet_nnunet.evaluation.cases import LabelScheme, read_label_scheme
from ctnet_nnunet.files import write_text
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.low_label.arms import Arm, Selection, select
from ctnet_nnunet.low_label.cases import (
    draw_cases,
    read_case_list,
    refuse_shared_patients,
    refuse_test_scans_among_unlabelled,
    refuse_test_studies,
    split_cases,
)
from ctnet_nnunet.low_label.experiment import Experiment, Settings, open_experiment, plans_hash
from ctnet_nnunet.low_label.figures import read_curves
from ctnet_nnunet.low_label.plans import (
    arm_plans,
    check_buildable,
    options_for_all,
    preset_of,
    pretraining_plans,
)
from ctnet_nnunet.low_label.report import Summaries, write_pages
from ctnet_nnunet.low_label.runner import Runner, Tell
from ctnet_nnunet.low_label.scores import read_rows, score_training, scored
from ctnet_nnunet.low_label.trainings import RESULTS, Training, pretrainings, supervised
from ctnet_nnunet.planes.sidecar import FILE_NAME as PLANES_FILE
from ctnet_nnunet.planes.sidecar import read_sidecar
from ctnet_nnunet.process import Workplace, interruptible
from ctnet_nnunet.shim_path import VARIABLE, with_shim
from ctnet_nnunet.unlabeled.cases import training_files
from ctnet_nnunet.unlabeled.target import Target, configuration_block, locate

PREPROCESSED = "nnUNet_preprocessed"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; see ``ctnet benchmark low-label --help``."""

    dataset: str
    labels: Sequence[int]
    draws: int
    arms: Sequence[str]
    iterations: int
    pretrain_iterations: int
    out: Path
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    preset: str | None = None
    epochs: int = 25
    seed: int = 12345
    test_cases: Path | None = None
    pool_cases: Path | None = None
    leave_out: Path | None = None
    patient_pattern: str | None = None
    assignments: Sequence[str] = ()
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class _Prepared:
    """A request after all checks."""

    target: Target
    configuration: dict[str, Any]
    experiment: Experiment
    selection: Selection
    before: list[Training]
    main: list[Training]
    scheme: LabelScheme

    @property
    def truth(self) -> Path:
        return self.target.folder.parent / "gt_segmentations"


def run_comparison(request: Request, tell: Tell) -> tuple[list[Path], dict[str, str]]:
    """Run what is missing and write the pages; returns their paths, and the trainings that failed with the reason.

    Raises:
        SetupError, DataError, PlanError, CheckpointError: What was asked for cannot be done; nothing is trained then.
    """
    target = locate(request.dataset, request.configuration, request.plans)
    configuration = configuration_block(target.plans, request.configuration, request.plans)
    settings = _settings(request, target, configuration)
    with interruptible(), folder_lock(request.out) as lock:
        experiment = open_experiment(request.out, settings)
        selection = select(request.arms, _existing(request.checkpoints))
        draws = draw_cases(settings.pool, request.labels, request.draws, settings.seed, settings.patient_pattern)
        _refuse_leaks(target, settings)
        _check_arms(target, configuration, settings, selection)
        experiment.add_draws(draws)
        before, main = pretrainings(experiment, selection), supervised(experiment, selection, draws)
        scheme = read_label_scheme(target.folder.parent / "dataset.json")
        prepared = _Prepared(target, configuration, experiment, selection, before, main, scheme)
        _lay_out(prepared)
        workplace = Workplace(request.out, training_environment(request), lock if os.name == "posix" else None)
        runner = Runner(experiment, workplace, request.device, request.workers, tell)
        runner.run([before, main], _scoring(prepared, runner))
        return _pages(prepared, runner), runner.failures


def _settings(request: Request, target: Target, configuration: Mapping[str, Any]) -> Settings:
    data = target.folder.parent / str(configuration["data_identifier"])
    known = sorted(path.stem for path in data.glob("*.b2nd") if not path.stem.endswith("_seg"))
    if not known:
        raise DataError(
            f"{data}: no preprocessed cases; run nnUNetv2_preprocess -d {request.dataset} -plans_name {request.plans} "
            f"-c {request.configuration}"
        )

    def listed(file: Path | None, option: str) -> list[str] | None:
        return None if file is None else read_case_list(file, option, known)

    left_out = listed(request.leave_out, "--leave-out") or []
    test, chosen = listed(request.test_cases, "--test-cases"), listed(request.pool_cases, "--pool-cases")
    pool, test_cases = split_cases(known, test, left_out, chosen, request.seed, request.patient_pattern)
    return Settings(
        dataset=target.dataset,
        configuration=request.configuration,
        plans=request.plans,
        plans_hash=plans_hash(target.plans, request.configuration),
        preset=preset_of(configuration, request.preset),
        options=options_for_all(list(request.assignments)),
        iterations=request.iterations,
        pretrain_iterations=request.pretrain_iterations,
        epochs=min(request.epochs, request.iterations, request.pretrain_iterations),
        seed=request.seed,
        pool=tuple(pool),
        test=tuple(test_cases),
        patient_pattern=request.patient_pattern,
    )


def _existing(checkpoints: Mapping[str, str]) -> dict[str, str]:
    return {name: str(Path(file).resolve()) for name, file in checkpoints.items()}


def _refuse_leaks(target: Target, settings: Settings) -> None:
    images = target.raw / "imagesTr"
    refuse_test_scans_among_unlabelled(target.images_un, images, settings.test, target.channels, target.file_ending)
    refuse_shared_patients(settings.pool, settings.test, settings.patient_pattern)
    sidecar = target.folder / PLANES_FILE
    if sidecar.is_file():
        # A labelled case is drawn from where it is in the pool, and only there; what else a study holds, always.
        labelled = {*settings.pool, *settings.test, *training_files(target)}
        studies = read_sidecar(sidecar).studies.items()
        cut_out = [
            (name, study.group)
            for name, study in studies
            if {case for stack in study.stacks.values() for case in stack.cases} - labelled
        ]
        refuse_test_studies(cut_out, settings.test, settings.patient_pattern)


def _check_arms(target: Target, configuration: Mapping[str, Any], settings: Settings, selection: Selection) -> None:
    channels, classes = target.channels, len(target.dataset_json["labels"])
    for arm in selection.arms:
        plans = arm_plans(target.plans, configuration, settings, arm)
        try:
            check_buildable(plans, channels, classes, None)
            if arm.pretraining is not None:
                before = pretraining_plans(target.plans, configuration, settings, arm.network, arm.pretraining)
                check_buildable(before, channels, classes, arm.pretraining)
        except CTNetError as error:
            raise type(error)(f"arm {arm.name}: {error}") from None
        if arm.weights is not None:
            _check_weights(arm, plans, channels, classes)


def _check_weights(arm: Arm, plans: Mapping[str, Any], channels: int, classes: int) -> None:
    """A user's checkpoint must fit the arm's network, before anything is trained."""
    weights = read_checkpoint(Path(str(arm.weights)))["network_weights"]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{arm.weights}: its network_weights are no table of tensors; give a checkpoint_*.pth")
    architecture = next(iter(plans["configurations"].values()))["architecture"]
    wanted = network_from_plan(architecture, channels, classes, True).state_dict()
    unfit = [item for item in compare_weights(wanted, weights) if item.wanted is not None]
    if unfit:
        first = unfit[0]
        raise CheckpointError(
            f"{arm.weights}: {len(unfit)} of {len(wanted)} tensors do not fit this plan's CTNet (first: {first.key}, "
            f"{first.action}); bring it over with `ctnet transfer`"
        )


def _lay_out(prepared: _Prepared) -> None:
    """A preprocessed folder of the experiment's own: links to the data, and its own plans and splits."""
    experiment, target = prepared.experiment, prepared.target
    folder = experiment.folder / PREPROCESSED / target.dataset
    source = target.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / RESULTS).mkdir(exist_ok=True)
    identifier = str(prepared.configuration["data_identifier"])
    for name in (identifier, target.folder.name, "gt_segmentations"):
        if (source / name).is_dir():
            _link(folder / name, source / name)
    write_text(folder / "dataset.json", json.dumps(target.dataset_json, indent=1))
    fingerprint = source / "dataset_fingerprint.json"
    if fingerprint.is_file():
        write_text(folder / fingerprint.name, fingerprint.read_text(encoding="utf-8"))
    write_text(folder / "splits_final.json", json.dumps(experiment.splits(), indent=1))
    if any(arm.semi_supervised for arm in prepared.selection.arms):
        write_text(folder / "semi_split.json", json.dumps(experiment.semi_split(), indent=1))
    for plans in _all_plans(prepared):
        write_text(folder / f"{plans['plans_name']}.json", json.dumps(plans, indent=1))
    experiment.save()


def _all_plans(prepared: _Prepared) -> list[dict[str, Any]]:
    base, settings = prepared.target.plans, prepared.experiment.settings
    found = []
    for arm in prepared.selection.arms:
        found.append(arm_plans(base, prepared.configuration, settings, arm))
        if arm.pretraining is not None:
            found.append(pretraining_plans(base, prepared.configuration, settings, arm.network, arm.pretraining))
    return found


def _link(link: Path, source: Path) -> None:
    if link.is_symlink() and link.resolve() == source.resolve():
        return
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(source.resolve(), target_is_directory=True)
    except OSError as error:
        raise SetupError(f"{link}: cannot be made a link to {source} ({error.strerror}); links are needed") from None


def training_environment(request: Request) -> dict[str, str]:
    """Variables of the trainings' commands: the comparison's own folders, and a share of the cores for each at once."""
    folders = {name: str(request.out / name) for name in (PREPROCESSED, RESULTS)}
    children = {**os.environ, **folders, VARIABLE: with_shim(os.environ.get(VARIABLE)), "PYTHONUNBUFFERED": "1"}
    children["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Augmentation processes take cores from the training itself; a user's own choice stands.
    processes = str(max(1, min(usable_cores() // (2 * request.workers), 12)))
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        children.setdefault(name, processes)
    if request.device == "cpu" and request.workers > 1:
        children.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // request.workers)))
    return children


def _scoring(prepared: _Prepared, runner: Runner) -> Callable[[Training], None]:
    def score(training: Training) -> None:
        try:
            score_training(prepared.experiment, training, prepared.truth, prepared.scheme)
        except DataError as error:
            runner.failures[training.title] = str(error)

    return score


def _pages(prepared: _Prepared, runner: Runner) -> list[Path]:
    """Score what an interrupted run left unscored, then write all pages anew."""
    score = _scoring(prepared, runner)
    for training in prepared.main:
        if training.finished and not scored(prepared.experiment, training):
            score(training)
    rows = read_rows(prepared.experiment, prepared.main)
    curves = read_curves(prepared.main, len(prepared.experiment.settings.pool))
    return write_pages(Summaries(prepared.experiment, rows, curves))
