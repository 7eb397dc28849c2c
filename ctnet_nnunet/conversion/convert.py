"""From a source's listing to a raw dataset with label map, folds, record and summary page."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from ctnet_nnunet.conversion.case import CaseConverter, Outcome
from ctnet_nnunet.conversion.cases import TRAINING, UNLABELLED, Case, Image, Listing, refuse_duplicates
from ctnet_nnunet.conversion.labels import (
    LabelMap,
    as_integers,
    label_map_from_values,
    numbers_in,
    read_label_map,
)
from ctnet_nnunet.conversion.patients import assign_patients, patient_of
from ctnet_nnunet.conversion.read import read_image
from ctnet_nnunet.conversion.record import PAGE, write_dataset
from ctnet_nnunet.conversion.report import Report
from ctnet_nnunet.conversion.settings import Settings
from ctnet_nnunet.conversion.splits import make_splits
from ctnet_nnunet.conversion.summary import write_page
from ctnet_nnunet.conversion.target import SPLITS, Target, commit, locate, partial_dataset, write_json
from ctnet_nnunet.conversion.writer import case_files
from ctnet_nnunet.errors import CTNetError, DataError
from ctnet_nnunet.image_check import read_image_header
from ctnet_nnunet.nifti_check import is_nifti
from ctnet_nnunet.workers import Death, run_jobs

#: Called after each case with its outcome, how many are through, and how many there are.
Progress = Callable[[Outcome, int, int], None]


def convert(listing: Listing, settings: Settings, progress: Progress | None = None) -> Report:
    """Convert every case of ``listing``; one that fails is named and the others go on.

    Raises:
        SetupError, DataError: nothing could even begin: folder, id, label map or patients table.
    """
    target = locate(settings.dataset_id, settings.name, settings.out, settings.force)
    refuse_duplicates(listing)
    fold_of = assign_patients(listing, settings.patients, settings.patient_pattern)
    report = Report(target.dataset, refused=dict(listing.refused), notes=list(listing.notes))
    if settings.dry_run:
        _check_headers(listing, settings, report)
        return report
    report.labels = _label_map(listing, settings)
    _require_parts(listing, report.labels)
    try:
        _convert_into(target, listing, settings, report, fold_of, progress)
    except OSError as error:
        raise DataError(
            f"{target.raw}: cannot be written ({error.strerror or error}); nothing was converted"
        ) from error
    return report


def _convert_into(
    target: Target,
    listing: Listing,
    settings: Settings,
    report: Report,
    fold_of: Mapping[str, int],
    progress: Progress | None,
) -> None:
    """Everything that writes: into a folder aside, which becomes the dataset at the end."""
    automatic = listing.label_map is None and not settings.label_map and report.labels is not None
    with partial_dataset(target) as partial:
        _convert_cases(listing.cases, listing.root, settings, report, partial, progress)
        if automatic:
            _name_by_numbers(listing, settings, report, partial)
        if report.written:
            labelled = [case for case in report.written if case.destination == TRAINING]
            made = make_splits(labelled, settings.folds, settings.seed, settings.stratify_sites, fold_of)
            report.splits = made[0] if labelled else []
            report.notes += _related(report.written)
            report.notes += made[1] if labelled else ["no case has a label: nnU-Net cannot plan this dataset alone"]
            write_dataset(listing, report, partial, target.name)
            commit(partial, target)
            report.page = target.dataset / PAGE
            _write_preprocessed_splits(report, target)
        else:
            _keep_refused(listing, report, partial, target)


def _require_parts(listing: Listing, labels: LabelMap | None) -> None:
    """Every label that a region is made of must be in the label map."""
    parts = {part for members in (listing.regions or {}).values() for part in members}
    missing = sorted(parts - set(labels.names if labels else ()))
    if missing:
        raise DataError(
            f"--label-map: lacks {', '.join(missing)}, of which the regions are made; add or leave out both"
        )


def _related(cases: Sequence[Case]) -> list[str]:
    """Whether unlabelled scans are of people who have labelled ones: pretraining would see a validation patient."""
    labelled = {patient_of(case) for case in cases if case.destination == TRAINING}
    found = [case.name for case in cases if case.destination == UNLABELLED and patient_of(case) in labelled]
    if not found:
        return []
    return [
        f"{len(found)} scans in imagesUn, {found[0]} for one, are of patients who have labelled scans, too: "
        "pretraining of a fold may see other scans of its validation patients; move them away if that matters"
    ]


def _label_map(listing: Listing, settings: Settings) -> LabelMap | None:
    """The map that the user gives, else the source's own, else one from all numbers that occur."""
    labels = [case.label for case in listing.cases if case.label]
    if settings.label_map:
        return read_label_map(settings.label_map, settings.others_background)
    if listing.label_map or not labels:
        return listing.label_map
    found: set[int] = set()
    for _, numbers in run_jobs(_Numbers(settings.max_voxels), labels, settings.workers):
        found |= set() if isinstance(numbers, Death) else numbers
    return label_map_from_values(found) if found - {0} else LabelMap((), {0: 0})


@dataclass(frozen=True)
class _Numbers:
    """Picklable: the numbers in one label map; an unreadable one has none here and is named when it is converted."""

    max_voxels: int

    def __call__(self, label: Image) -> set[int]:
        try:
            read, _ = read_image(label, self.max_voxels)
            return set(numbers_in(as_integers(sitk.GetArrayViewFromImage(read), str(label))[0], str(label)))
        except (CTNetError, RuntimeError, OSError, MemoryError):
            return set()


def _name_by_numbers(listing: Listing, settings: Settings, report: Report, partial: Path) -> None:
    """Say that the labels have no names; numbers that only refused cases hold must not become labels."""
    report.notes.append(
        "the labels are named after their numbers; name them with --label-map, so that left and right are known"
    )
    assert report.labels is not None
    inverse = report.labels.inverse()
    used = {label for outcome in report.outcomes.values() for label in outcome.voxels or {}} - {0}
    if not used or len(used) == len(report.labels.names):
        return
    report.labels = label_map_from_values(number for label in used for number in inverse[str(label)])
    again, report.written = report.written, []
    _convert_cases(again, listing.root, settings, report, partial, None)


def _convert_cases(
    cases: Sequence[Case], root: Path, settings: Settings, report: Report, partial: Path, progress: Progress | None
) -> None:
    options = (settings.reorient, settings.resample_to_first, settings.max_voxels)
    work = CaseConverter(partial, partial / "conversion", report.labels, *options)
    outcomes: dict[str, Outcome] = {}
    for case, result in run_jobs(work, cases, settings.workers):
        if isinstance(result, Death):
            for file in case_files(partial, case):
                file.unlink(missing_ok=True)
            result = Outcome(case.name, str(result))
        outcomes[case.name] = result
        if progress:
            progress(result, len(outcomes), len(cases))
    for case in sorted(cases, key=lambda case: case.name):  # workers finish in any order
        outcome = _shortened(outcomes[case.name], root)
        report.outcomes[case.name] = outcome
        if outcome.reason:
            report.refused[case.name] = outcome.reason
        else:
            report.written.append(case)


def _shortened(outcome: Outcome, root: Path) -> Outcome:
    """Without the source's own folder, which the report names once."""
    prefix = f"{root}/"
    notes = tuple(note.replace(prefix, "") for note in outcome.notes)
    return dataclasses.replace(outcome, reason=outcome.reason.replace(prefix, ""), notes=notes)


def _write_preprocessed_splits(report: Report, target: Target) -> None:
    """nnU-Net copies the folds when it plans; a dataset that was planned already holds older ones."""
    if target.preprocessed is None:
        return
    if report.splits:
        write_json(target.preprocessed / SPLITS, report.splits)
    report.notes.append(f"{target.preprocessed}: is of an older conversion; plan and preprocess the dataset again")


def _keep_refused(listing: Listing, report: Report, partial: Path, target: Target) -> None:
    """Keep page and pictures where nothing could be converted; nnU-Net does not see the folder."""
    if not report.outcomes:
        return
    write_page(partial / PAGE, target.name, listing, report.outcomes, report)
    shutil.rmtree(target.refused, ignore_errors=True)
    (partial / "conversion").rename(target.refused)
    report.page = target.refused / Path(PAGE).name


def _check_headers(listing: Listing, settings: Settings, report: Report) -> None:
    """For a dry run: every header that can be read without its voxels, and the label map."""
    if settings.label_map:
        report.labels = read_label_map(settings.label_map, settings.others_background)
    for case in listing.cases:
        try:
            for image in (*case.images, *([case.label] if case.label else [])):
                if is_nifti(image.path) and image.volume is None:
                    read_image_header(image.path, settings.max_voxels)
            report.written.append(case)
        except DataError as error:
            report.refused[case.name] = str(error).replace(f"{listing.root}/", "")
