"""``run_demo``: prepare the folder, run the steps, score and report."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from ctnet_nnunet.cores import usable_cores
from ctnet_nnunet.demo.dataset import DATASET_NAME, NEW_LABELS, NEW_SCANS, build_raw_dataset
from ctnet_nnunet.demo.display import LiveDisplay, PlainDisplay
from ctnet_nnunet.demo.pipeline import Pipeline
from ctnet_nnunet.demo.records import FILE_NAME, RecordBook, open_book
from ctnet_nnunet.demo.settings import DemoSettings
from ctnet_nnunet.demo.steps import PREDICTIONS, PREPROCESSED, RAW, RESULTS, demo_steps
from ctnet_nnunet.demo.summary import REPORT, summarise
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.cases import Evaluation
from ctnet_nnunet.folder_lock import folder_lock
from ctnet_nnunet.process import Workplace, interruptible
from ctnet_nnunet.shim_path import VARIABLE, with_shim

WRITTEN = (RAW, PREPROCESSED, RESULTS, PREDICTIONS, NEW_SCANS, NEW_LABELS, Path("logs"), Path(REPORT), Path(FILE_NAME))
"""All that the demo writes; nothing else is ever removed by ``--restart``."""


def run_demo(folder: Path, settings: DemoSettings, restart: bool, console: Console) -> tuple[Evaluation, Path]:
    """Run the demo in ``folder`` to its end; returns the scores on the new scans and the report's path.

    Raises:
        SetupError: if the folder cannot be used or a command is missing.
        StepFailedError: if a command fails.
        DataError: if the shipped scans are damaged, or nothing can be scored.
    """
    if folder.exists() and not folder.is_dir():
        raise SetupError(f"{folder} is a file; give a folder with --out")
    with interruptible(), folder_lock(folder) as lock:
        if restart:
            _remove_earlier(folder)
        book = open_book(folder, settings.name)
        book.save()
        environment = _environment()
        children = {**os.environ, **environment, **_folders(folder), VARIABLE: with_shim(os.environ.get(VARIABLE))}
        # A command that calls another one by name must find those of this installation.
        children["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        workplace = Workplace(folder, children, lock if os.name == "posix" else None)
        _run_steps(workplace, book, settings, console)
        with console.status("Scoring the new scans") if console.is_terminal else nullcontext():
            return summarise(folder, book, _as_typed(environment))


def _run_steps(workplace: Workplace, book: RecordBook, settings: DemoSettings, console: Console) -> None:
    live = LiveDisplay(console) if console.is_terminal else None
    pipeline = Pipeline(workplace, book, live or PlainDisplay(console), provenance.versions())
    steps = demo_steps(settings)
    complete = all((workplace.folder / path).is_dir() for path in (RAW / DATASET_NAME, NEW_SCANS, NEW_LABELS))
    if pipeline.first_open(steps) == 0 or not complete:
        build_raw_dataset(workplace.folder)
    with live or nullcontext():
        pipeline.run(steps)


def _environment() -> dict[str, str]:
    """Settings for nnU-Net's processes, by the cores at hand: one process on two cores leaves them to the training.

    ``nnUNet_n_proc_DA=0`` would save that one too, but nnU-Net's planner fails with it.
    """
    processes = str(max(1, min(usable_cores() // 2, 4)))
    return {"nnUNet_n_proc_DA": processes, "nnUNet_def_n_proc": processes}


def _folders(folder: Path) -> dict[str, str]:
    """nnU-Net's three folders; logs are to be read while they are written, so nothing is held back."""
    root = folder.resolve()
    return {name.name: str(root / name) for name in (RAW, PREPROCESSED, RESULTS)} | {"PYTHONUNBUFFERED": "1"}


def _as_typed(environment: dict[str, str]) -> list[str]:
    """What somebody types before the commands, in the demo's folder."""
    folders = [f'export {name}="$PWD/{name}"' for name in (RAW.name, PREPROCESSED.name, RESULTS.name)]
    return [*folders, 'eval "$(ctnet env)"', *(f"export {name}={value}" for name, value in environment.items())]


def _remove_earlier(folder: Path) -> None:
    """Remove an earlier demo, after a look that it is one."""
    if any(folder.glob("[!.]*")) and not (folder / FILE_NAME).is_file():
        raise SetupError(f"{folder} holds other files and no {FILE_NAME}; --restart removes only an earlier demo")
    for path in (folder / name for name in WRITTEN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
