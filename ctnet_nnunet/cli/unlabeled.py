"""``ctnet preprocess-unlabeled``: preprocess the scans of imagesUn."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from ctnet_nnunet.progress_bar import case_bar

if TYPE_CHECKING:
    from ctnet_nnunet.unlabeled.case import Outcome
    from ctnet_nnunet.unlabeled.preprocess import Summary


def preprocess_unlabeled(
    dataset: str = typer.Option(..., "-d", "--dataset", help="Dataset number or name (501 or Dataset501_Name)."),
    configuration: str = typer.Option(..., "-c", "--configuration", help="Configuration, for example 3d_fullres."),
    plans: str = typer.Option("nnUNetPlans", "-p", "--plans", help="Name of the plans."),
    processes: int | None = typer.Option(
        None, "-np", "--processes", min=0, help="Worker processes (0: none). Default: one per CPU, at most 4."
    ),
    force: bool = typer.Option(False, "--force", help="Redo scans that are done and unchanged, too."),
    max_voxels: int | None = typer.Option(None, "--max-voxels", min=1, help="Refuse larger scans (default 1024^3)."),
) -> None:
    """Preprocess the unlabelled scans of nnUNet_raw/DATASET/imagesUn with the dataset's plans."""
    from ctnet_nnunet.nnunet_version import require_supported_nnunet

    require_supported_nnunet()
    from ctnet_nnunet.image_check import MAX_VOXELS
    from ctnet_nnunet.unlabeled.preprocess import preprocess_unlabeled as run

    with _Display() as display:
        limit = MAX_VOXELS if max_voxels is None else max_voxels
        summary = run(dataset, configuration, plans, processes, force, display.show, limit)
    _print_summary(summary)
    raise typer.Exit(summary.exit_status)


class _Display:
    """One line per case with the remaining time, below it a bar where the output is a terminal."""

    def __init__(self) -> None:
        self._bar = case_bar() if sys.stdout.isatty() else None
        self._context: AbstractContextManager[Any] = self._bar or nullcontext()
        self._task = self._bar.add_task("imagesUn", total=None) if self._bar else None
        self._start = time.monotonic()
        self._worked = 0

    def __enter__(self) -> _Display:
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def show(self, outcome: Outcome, through: int, total: int) -> None:
        """Report one case; ``through`` of ``total`` are through with it."""
        self._worked += outcome.seconds > 0
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=through, total=total)
            if outcome.status == "failed":
                self._bar.console.print(f"{outcome.case}: {outcome.reason}", markup=False, highlight=False)
            return
        what = outcome.reason if outcome.status == "failed" else outcome.status
        print(f"[{through}/{total}] {outcome.case}: {what}{self._remaining(total - through)}", flush=True)

    def _remaining(self, left: int) -> str:
        """Remaining time from the cases that took work; unchanged ones come first and take none."""
        if not left or not self._worked:
            return ""
        seconds = (time.monotonic() - self._start) / self._worked * left
        return f" (about {seconds / 60:.0f} min left)" if seconds > 90 else f" (about {seconds:.0f} s left)"


def _print_summary(summary: Summary) -> None:
    counts = {"preprocessed": summary.done, "unchanged": summary.unchanged, "refused": summary.failed}
    print(", ".join(f"{len(cases)} {name}" for name, cases in counts.items()) + f": {summary.folder}")
    if summary.removed:
        print(f"removed, no longer in imagesUn: {', '.join(summary.removed)}")
    for note in summary.notes:
        print(f"note: {note}")
    for case, reason in summary.failed.items():
        print(f"ctnet: refused {case}: {reason}", file=sys.stderr)
