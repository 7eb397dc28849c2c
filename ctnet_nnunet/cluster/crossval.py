"""The chain of a cross-validation: preprocess, pretrain each fold, train each fold, ensemble, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctnet_nnunet.cluster.beginnings import check_beginnings
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.cluster.trainers import require_divisible, require_trainer
from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.files import write_text
from ctnet_nnunet.unlabeled.cases import find_cases
from ctnet_nnunet.unlabeled.target import Target, configuration_block, environment_folder, locate

FOLDER = "crossval"
"""Of the chain, below the model's folder."""
SPLITS = "splits_final.json"
STOCK_FOLDS = 5
PRETRAINERS = ("nnUNetTrainerCTNetPretrain", "nnUNetTrainerVolF", "nnUNetTrainerImagingPlanes", "nnUNetTrainerCMFT")
SEMI_SUPERVISED = ("nnUNetTrainerReciprocal", "nnUNetTrainerMeanTeacher")
TRAIN = ("-m", "ctnet_nnunet.train")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; see ``ctnet crossval --help``."""

    dataset: str
    configuration: str
    trainer: str
    plans: str = "nnUNetPlans"
    pretrainer: str | None = None
    folds: Sequence[int] = ()
    device: str = "cuda"
    gpus: int = 1
    processes: int = 4
    batch_per_rank: int | None = None


@dataclass(frozen=True)
class Crossval:
    """A request after all checks.

    Attributes:
        request: As asked for, with the folds that it means.
        target: The dataset and its plans.
        model: The model's folder below nnUNet_results.
        steps: Of the chain, in an order in which they can run.
        unknown: Titles of folds that were not begun by a chain, so that their pretraining, if any, is not known.
    """

    request: Request
    target: Target
    model: Path
    steps: tuple[Step, ...]
    unknown: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the chain keeps its logs and records."""
        return self.model / FOLDER


def plan_crossval(request: Request) -> Crossval:
    """Check a request and lay out its steps; nothing is written.

    Raises:
        SetupError, DataError, PlanError: It cannot be done.
    """
    require_trainer(request.trainer, "-tr")
    if request.trainer in PRETRAINERS:
        raise SetupError(f"-tr {request.trainer}: pretrains only; give it with --pretrain, and -tr what is fine-tuned")
    if request.pretrainer is not None and request.pretrainer not in PRETRAINERS:
        raise SetupError(f"--pretrain {request.pretrainer}: no pretraining trainer; one of {', '.join(PRETRAINERS)}")
    if request.batch_per_rank is not None and request.gpus < 2:
        raise SetupError("--batch-per-rank: only with --gpus-per-job 2 or more; else the plan's batch_size says it")
    target = locate(request.dataset, request.configuration, request.plans)
    _require_shares(request, target)
    results = environment_folder("nnUNet_results")
    request = replace(request, folds=_folds(request.folds, target))
    model = results / target.dataset / _model_name(request, request.trainer)
    steps = tuple(_steps(request, target, model))
    return Crossval(request, target, model, steps, tuple(check_beginnings(model / FOLDER, steps)))


def _require_shares(request: Request, target: Target) -> None:
    if request.gpus < 2:
        return
    block = configuration_block(target.plans, request.configuration, request.plans)
    for trainer in filter(None, (request.pretrainer, request.trainer)):
        require_divisible(trainer, request.configuration, block, request.gpus, request.batch_per_rank)


def write_splits(target: Target) -> None:
    """Write nnU-Net's own folds where there are none: folds that start at once must not all write them."""
    file = target.folder.parent / SPLITS
    if file.is_file():
        return
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(training_cases(target), seed=12345, n_splits=STOCK_FOLDS)
    plain = [{part: [str(case) for case in cases] for part, cases in fold.items()} for fold in splits]
    write_text(file, json.dumps(plain, indent=4))


def training_cases(target: Target) -> list[str]:
    """Names of the labelled cases, sorted."""
    listed = target.dataset_json.get("dataset")
    if isinstance(listed, dict):
        return sorted(listed)
    ending = target.file_ending
    return sorted(file.name.removesuffix(ending) for file in (target.raw / "labelsTr").glob(f"*{ending}"))


def _folds(asked: Sequence[int], target: Target) -> tuple[int, ...]:
    file = target.folder.parent / SPLITS
    try:
        count = len(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else STOCK_FOLDS
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}); remove it, and nnU-Net's folds are made") from None
    cases = len(training_cases(target))
    if not file.is_file() and cases < STOCK_FOLDS:
        raise DataError(f"{target.raw}: {cases} labelled cases are too few for {STOCK_FOLDS} folds; write a {file}")
    folds = tuple(dict.fromkeys(asked)) or tuple(range(count))
    if wrong := [fold for fold in folds if not 0 <= fold < count]:
        raise DataError(f"--folds {wrong[0]}: there are {count} folds, 0 to {count - 1} ({file})")
    return folds


def _model_name(request: Request, trainer: str) -> str:
    return f"{trainer}__{request.plans}__{request.configuration}"


def _steps(request: Request, target: Target, model: Path) -> list[Step]:
    steps = [_preprocess(request, target)]
    if request.pretrainer is not None or request.trainer in SEMI_SUPERVISED:
        steps += _unlabeled(request, target, model)
    before = tuple(step.name for step in steps)
    pretrainings = {} if request.pretrainer is None else {
        fold: _training(request, request.pretrainer, fold, before, model, None) for fold in request.folds
    }  # fmt: skip
    trainings = [
        _training(request, request.trainer, fold, before, model, pretrainings.get(fold)) for fold in request.folds
    ]
    ensemble = _ensemble(request, target, model, trainings)
    report = _report(target, model, ensemble)
    return [*steps, *pretrainings.values(), *trainings, ensemble, report]


def _preprocess(request: Request, target: Target) -> Step:
    block = configuration_block(target.plans, request.configuration, request.plans)
    folder = target.folder.parent / str(block["data_identifier"])
    number = str(int(target.dataset[7:10]))  # this command of nnU-Net's takes no name
    words = ("nnUNetv2_preprocess", "-d", number, "-plans_name", request.plans, "-c", request.configuration)
    workers = ("-np", str(request.processes))
    proofs = tuple(folder / f"{case}.pkl" for case in training_cases(target))
    if not proofs:
        raise DataError(f"{target.raw / 'labelsTr'}: no label maps; the folds have nothing to learn from")
    return Step("preprocess", "preprocessing", "preprocess", (*words, *workers), proofs, output=folder)


def _unlabeled(request: Request, target: Target, model: Path) -> list[Step]:
    """Scans that are refused are named by the command, which leaves alone what is done."""
    if not target.images_un.is_dir() or not find_cases(target).cases:
        return []
    words = ("ctnet", "preprocess-unlabeled", "-d", target.dataset, "-c", request.configuration, "-p", request.plans)
    sign = model / FOLDER / "done" / "unlabeled"
    scans = (target.images_un, *sorted(target.images_un.iterdir()))
    return [Step("unlabeled", "preprocessing of imagesUn", "unlabeled", (*words, "-np", str(request.processes)),
                 (sign,), ("preprocess",), scans, accepted=(0, 1), marked=True, output=target.folder)]  # fmt: skip


def _training(
    request: Request, trainer: str, fold: int, before: tuple[str, ...], model: Path, pretraining: Step | None
) -> Step:
    """A pretraining for each fold: one for all would have seen every fold's validation images."""
    pretrains = trainer in PRETRAINERS
    folder = model.parent / _model_name(request, trainer) / f"fold_{fold}"
    words = (*_launcher(request), request.dataset, request.configuration, str(fold))
    words += ("-tr", trainer, "-p", request.plans, "-device", request.device)
    share = () if request.batch_per_rank is None else ("--batch-per-rank", str(request.batch_per_rank))
    return Step(
        name=f"pretrain_{fold}" if pretrains else f"fold_{fold}",
        title=f"pretraining of fold {fold}" if pretrains else f"fold {fold}",
        kind="pretraining" if pretrains else "training",
        words=(*words, *share),
        proofs=(folder / ("checkpoint_final.pth" if pretrains else "validation/summary.json"),),
        after=before if pretraining is None else (*before, pretraining.name),
        folder=folder,
        weights=None if pretraining is None else pretraining.proofs[0],
        output=folder if pretrains else None,
        processes=request.gpus,
    )


def _launcher(request: Request) -> tuple[str, ...]:
    if request.gpus > 1:
        return ("torchrun", "--standalone", "--nproc-per-node", str(request.gpus), *TRAIN)
    return ("nnUNetv2_train",)


def _ensemble(request: Request, target: Target, model: Path, trainings: Sequence[Step]) -> Step:
    folds = [str(fold) for fold in sorted(request.folds)]
    words = ("nnUNetv2_find_best_configuration", target.dataset, "-c", request.configuration, "-tr", request.trainer)
    more = ("-p", request.plans, "-f", *folds, "--disable_ensembling", "-np", str(request.processes))
    folder = crossval_results(model, request.folds)
    return Step("ensemble", "cross-validation's figures and postprocessing", "ensemble", (*words, *more),
                (folder / "postprocessing.json", folder / "summary.json"), tuple(step.name for step in trainings),
                tuple(step.proofs[0] for step in trainings))  # fmt: skip


def crossval_results(model: Path, folds: Sequence[int]) -> Path:
    """Where nnU-Net collects the validation cases of these folds."""
    return model / f"crossval_results_folds_{'_'.join(str(fold) for fold in sorted(folds))}"


def _report(target: Target, model: Path, ensemble: Step) -> Step:
    predictions, out = ensemble.proofs[0].parent, model / FOLDER / "report"
    truth = target.folder.parent / "gt_segmentations"
    words = ("ctnet", "evaluate", str(predictions), str(truth), "-o", str(out), "--predicted-only", "--force")
    return Step("report", "report", "report", words, (out / "scores.json", out / "report.html"), (ensemble.name,),
                (ensemble.proofs[0], *ensemble.made_from))  # fmt: skip
