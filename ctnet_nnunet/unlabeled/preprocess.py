"""Preprocess every scan of imagesUn with the plans of its dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ctnet_nnunet.cores import usable_cores
from ctnet_nnunet.errors import DataError
from ctnet_nnunet.image_check import MAX_VOXELS
from ctnet_nnunet.planes.sidecar import Sidecar
from ctnet_nnunet.unlabeled.case import CaseWorker, Job, Outcome
from ctnet_nnunet.unlabeled.cases import Listing, find_cases
from ctnet_nnunet.unlabeled.commit import case_lock, sweep
from ctnet_nnunet.unlabeled.planes import check_planes, is_of_labelled_cases, keep_planes, planes_of, single_slices
from ctnet_nnunet.unlabeled.records import is_current, remove_case, stored_cases
from ctnet_nnunet.unlabeled.target import Target, locate
from ctnet_nnunet.workers import Death, run_jobs

#: Called after each case with its outcome, how many are through, and how many there are.
Progress = Callable[[Outcome, int, int], None]


@dataclass
class Summary:
    """What became of imagesUn: cases by outcome, ``failed`` with reasons, ``removed`` whose scan is gone.

    ``notes`` are for the person at the terminal.
    """

    folder: Path
    done: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0, or 1 when some file was refused or failed."""
        return 1 if self.failed else 0

    def add(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self.failed[outcome.case] = outcome.reason
        else:
            (self.done if outcome.status == "done" else self.unchanged).append(outcome.case)


def preprocess_unlabeled(
    dataset: str | int,
    configuration: str,
    plans: str = "nnUNetPlans",
    processes: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Summary:
    """Preprocess imagesUn into ``<data_identifier>_unlabeled`` beside the dataset's labelled cases.

    Args:
        dataset: number or name.
        processes: worker processes; None: one per CPU, at most four; 0: none, all in this process.
        force: redo what is current.
        progress: called after each case.
        max_voxels: a scan above this is refused, before and after resampling.

    Returns:
        The summary; a broken or unfitting scan is in ``failed`` and does not stop the others.

    Raises:
        SetupError, DataError, PlanError: nothing can be done at all.
    """
    target = locate(dataset, configuration, plans)
    sidecar = planes_of(target)
    listing = _list_and_clean(target, sidecar)
    summary = Summary(target.folder, removed=listing.removed, notes=listing.notes)
    _create(target.folder)
    total = len(listing.found.cases) + len(listing.found.refused)

    def count(outcome: Outcome) -> None:
        summary.add(outcome)
        if progress is not None:
            progress(outcome, len(summary.done) + len(summary.unchanged) + len(summary.failed), total)

    for name, reason in listing.found.refused.items():
        count(Outcome(name, "failed", reason))
    single = set() if sidecar is None else single_slices(sidecar)
    jobs = []
    for case, files in listing.found.cases.items():
        if not force and _is_current(target, case, files):
            count(Outcome(case, "unchanged"))
        else:
            jobs.append(Job(case, tuple(files), case in single))
    for job, result in run_jobs(CaseWorker(target, force, max_voxels), jobs, _processes(processes, len(jobs))):
        count(_bury(target, job, result) if isinstance(result, Death) else result)
    sweep(target.folder)
    keep_planes(target, sidecar)
    return summary


@dataclass(frozen=True)
class _Cleaned:
    found: Listing
    removed: list[str]
    notes: list[str]


def _list_and_clean(target: Target, sidecar: Sidecar | None) -> _Cleaned:
    """List imagesUn and take every stored case out of use whose scan is gone or refused."""
    error: DataError | None = None
    try:
        found = find_cases(target)
    except DataError as caught:
        # A missing folder may only be raw data that stayed on another machine; an empty one says: no scans.
        alone = sidecar is not None and is_of_labelled_cases(sidecar, target)
        if not target.images_un.is_dir() and not alone:
            raise
        found, error = Listing(), None if alone else caught
    notes = [] if sidecar is None else check_planes(sidecar, target, found)
    removed = [case for case in stored_cases(target.folder) if case not in found.cases and _remove(target, case)]
    if error is not None:
        raise error
    return _Cleaned(found, [case for case in removed if case not in found.refused], notes)


def _remove(target: Target, case: str) -> bool:
    with case_lock(target.folder, case):
        return remove_case(target.folder, case)


def _bury(target: Target, job: Job, death: Death) -> Outcome:
    _remove(target, job.case)
    return Outcome(job.case, "failed", str(death))


def _is_current(target: Target, case: str, files: list[Path]) -> bool:
    try:
        return is_current(target.folder, case, target.plan_hash, files)
    except OSError:
        return False  # an unreadable file is named by the worker that opens it


def _create(folder: Path) -> None:
    try:
        (folder / ".locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be created ({error}); check its permissions and the disk") from error


def _processes(wanted: int | None, jobs: int) -> int:
    if wanted is not None and wanted < 0:
        raise DataError(f"the number of processes is {wanted}; give 0 (none) or more")
    return min(min(usable_cores(), 4) if wanted is None else wanted, jobs)
