"""``run_comparison``: check everything, lay the folder out, train, score, write the pages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctnet_nnunet.cores import usable_cores
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.evaluation.cases import LabelScheme, read_label_scheme
from ctnet_nnunet.files import sha256, write_text
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.low_label.arms import Selection, select
from ctnet_nnunet.low_label.cases import draw_cases, read_case_list, split_cases
from ctnet_nnunet.low_label.checks import check_arms, refuse_leaks
from ctnet_nnunet.low_label.experiment import Experiment, Settings, UnlabelledScans, open_experiment, plans_hash
from ctnet_nnunet.low_label.figures import read_curves
from ctnet_nnunet.low_label.plans import arm_plans, options_for_all, preset_of, pretraining_plans
from ctnet_nnunet.low_label.report import Summaries, write_pages
from ctnet_nnunet.low_label.runner import Runner, Tell
from ctnet_nnunet.low_label.scores import read_rows, score_training, scored
from ctnet_nnunet.low_label.trainings import RESULTS, Training, pretrainings, supervised
from ctnet_nnunet.process import Workplace, interruptible
from ctnet_nnunet.shim_path import VARIABLE, with_shim
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
    pretrain_iterations: int | None
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
    known = _known_cases(request, target, configuration)
    left_out = _listed(request.leave_out, "--leave-out", known) or []
    settings = _settings(request, target, configuration, known, left_out)
    checkpoints = _existing(request.checkpoints)
    with interruptible(), folder_lock(request.out) as lock:
        experiment = open_experiment(request.out, settings, _contents(checkpoints))
        settings = experiment.settings
        selection = select(request.arms, checkpoints)
        _require_length(settings, selection)
        draws = draw_cases(settings.pool, request.labels, request.draws, settings.seed, settings.patient_pattern)
        refuse_leaks(target, settings, left_out)
        check_arms(target, configuration, settings, selection, draws)
        experiment.add_draws(draws)
        before, main = pretrainings(experiment, selection), supervised(experiment, selection, draws)
        if before:
            experiment.read_unlabelled(UnlabelledScans.of(target.folder))
        scheme = read_label_scheme(target.folder.parent / "dataset.json")
        prepared = _Prepared(target, configuration, experiment, selection, before, main, scheme)
        _lay_out(prepared)
        workplace = Workplace(request.out, training_environment(request), lock if os.name == "posix" else None)
        runner = Runner(experiment, workplace, request.device, request.workers, tell)
        runner.run([before, main], _scoring(prepared, runner))
        return _pages(prepared, runner), runner.failures


def _known_cases(request: Request, target: Target, configuration: Mapping[str, Any]) -> list[str]:
    data = target.folder.parent / str(configuration["data_identifier"])
    known = sorted(path.stem for path in data.glob("*.b2nd") if not path.stem.endswith("_seg"))
    if not known:
        raise DataError(
            f"{data}: no preprocessed cases; run nnUNetv2_preprocess -d {request.dataset} -plans_name {request.plans} "
            f"-c {request.configuration}"
        )
    return known


def _listed(file: Path | None, option: str, known: Sequence[str]) -> list[str] | None:
    return None if file is None else read_case_list(file, option, known)


def _settings(
    request: Request, target: Target, configuration: Mapping[str, Any], known: Sequence[str], left_out: Sequence[str]
) -> Settings:
    test = _listed(request.test_cases, "--test-cases", known)
    chosen = _listed(request.pool_cases, "--pool-cases", known)
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
        epochs=min(request.epochs, request.iterations, request.pretrain_iterations or request.epochs),
        seed=request.seed,
        pool=tuple(pool),
        test=tuple(test_cases),
        patient_pattern=request.patient_pattern,
    )


def _require_length(settings: Settings, selection: Selection) -> None:
    pretrained = [arm.name for arm in selection.arms if arm.pretraining is not None]
    if pretrained and settings.pretrain_iterations is None:
        raise SetupError(f"--pretrain-iterations: arm {pretrained[0]} has a pretraining; say how many iterations long")


def _existing(checkpoints: Mapping[str, str]) -> dict[str, str]:
    return {name: str(Path(file).resolve()) for name, file in checkpoints.items()}


def _contents(checkpoints: Mapping[str, str]) -> dict[str, str]:
    """NAME → SHA-256 of the user's file."""
    return {name: sha256(Path(file)) for name, file in checkpoints.items()}


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
    """Score what an interrupted run left unscored, then write all pages anew, of everything the folder holds."""
    score, experiment = _scoring(prepared, runner), prepared.experiment
    arms = prepared.selection.with_all_others(experiment.checkpoints)
    trainings = supervised(experiment, arms, experiment.draws)
    for training in trainings:
        if training.finished and not scored(experiment, training):
            score(training)
    rows = read_rows(experiment, trainings)
    curves = read_curves(trainings, experiment.settings.most_labels)
    return write_pages(Summaries(experiment, rows, curves))
