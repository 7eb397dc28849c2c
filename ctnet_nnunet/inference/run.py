"""``predict_scans``: check, say the cost, predict case by case, write labels, tables, the record and the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.metrics import Structure, structures_from_labels
from ctnet_nnunet.files import sha256, write_text
from ctnet_nnunet.image_check import check_image_file, refuse_other_grids
from ctnet_nnunet.inference.ensemble import Cost, Ensemble
from ctnet_nnunet.inference.inputs import Case, find_cases
from ctnet_nnunet.inference.measure import Measurement, as_csv, as_plain, measure
from ctnet_nnunet.inference.missing import MissingPairs
from ctnet_nnunet.inference.model import Model, load_model

SPACING_FACTOR = 2.0
"""A voxel this many times larger or smaller than the plan's, along any axis, gets the scan flagged."""


class Progress(Protocol):
    """What is told as it goes."""

    def case(self, number: int, total: int, name: str, cost: Cost) -> None:
        """A case begins; it costs so many forward passes."""

    def passed(self) -> None:
        """One forward pass is done."""

    def line(self, text: str) -> None:
        """Anything else worth saying."""


@dataclass(frozen=True)
class Request:
    """What to predict, with what, into where."""

    source: Path
    out: Path
    model: Path
    folds: Sequence[str] | None = None
    speed: str = "balanced"
    device: str = "cpu"
    report: bool = False
    force: bool = False
    synthesis: Path | None = None


@dataclass
class Batch:
    """What was predicted: measurements and warnings by case, and the cases that failed with the reason."""

    structures: tuple[Structure, ...]
    files: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def predict_scans(request: Request, progress: Progress) -> Batch:
    """Predict every case of ``request.source``; a case that fails is recorded and the others go on.

    Raises:
        SetupError, DataError, PlanError, CheckpointError: If nothing can be predicted at all.
    """
    device = torch_device(request.device)
    model = load_model(request.model, request.folds)
    missing = MissingPairs(model, request.synthesis, device)
    cases, failures = find_cases(request.source, model.channels, model.file_ending, missing.optional)
    _refuse_existing(request, [f"{case.name}{model.file_ending}" for case in cases])
    batch = Batch(structures_from_labels(model.dataset_json["labels"]), failures=failures)
    _make_folder(request.out)
    ensemble = Ensemble(model, device, request.speed, progress.passed)
    started = datetime.now().astimezone()
    for number, case in enumerate(cases, start=1):
        begun = time.monotonic()
        try:
            _predict_case(ensemble, missing, case, request.out, batch, progress, (number, len(cases)))
        except CTNetError as error:
            batch.failures[case.name] = str(error)
            progress.line(f"{case.name}: FAILED: {error}")
            continue
        batch.seconds[case.name] = round(time.monotonic() - begun, 1)
        _write_tables(request, model, missing, batch, started, ensemble.low_precision)
    if not batch.labels:
        name, reason = next(iter(batch.failures.items()))
        raise DataError(f"no case could be predicted; the first, {name}: {reason}")
    if request.report:
        from ctnet_nnunet.inference.report import write_reports

        write_reports(request.out, model, batch)
    return batch


def _predict_case(
    ensemble: Ensemble,
    missing: MissingPairs,
    case: Case,
    out: Path,
    batch: Batch,
    progress: Progress,
    place: tuple[int, int],
) -> None:
    model = ensemble.model
    headers = [check_image_file(file, voxels=True) for file in case.files]
    refuse_other_grids(case.name, [(file.name, header) for file, header in zip(case.files, headers, strict=True)])
    warnings = [*missing.words(case), *_warnings(headers[0].spacing, model)]
    for warning in warnings:
        progress.line(f"{case.name}: WARNING: {warning}")
    image, properties = ensemble.preprocess(case.files)
    progress.case(*place, case.name, ensemble.cost(image))
    with missing.bridged(case, image) as complete:
        prediction = ensemble.predict(complete, properties)
    target = out / f"{case.name}{model.file_ending}"
    _write_labels(model, prediction.labels, properties, target)
    spacing = [float(size) for size in properties["spacing"]]
    batch.measurements[case.name] = measure(case.name, prediction, batch.structures, spacing)
    batch.files[case.name], batch.labels[case.name] = case.files, target
    batch.warnings[case.name] = warnings


def _warnings(spacing: Sequence[float], model: Model) -> list[str]:
    """What makes this scan unlike the training cases, by its header."""
    planned = sorted(float(size) for size in model.configuration.spacing)
    given = sorted(float(size) for size in spacing)[-len(planned) :]
    far = [f"{a:.2g} mm instead of {b:.2g}" for a, b in zip(given, planned, strict=True)
           if max(a / b, b / a) > SPACING_FACTOR]  # fmt: skip
    return [f"voxels are far from the training's: {', '.join(far)}; check the result"] if far else []


def _write_labels(model: Model, labels: Any, properties: dict[str, Any], target: Path) -> None:
    """Through the plan's own writer, under a name that ends up as the target only when the file is whole."""
    temporary = target.with_name(f".part_{os.getpid()}_{target.name}")
    try:
        model.plans.image_reader_writer_class().write_seg(labels, str(temporary), properties)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"{target}: could not be written ({reason}); free disk space or fix the rights") from None


def _write_tables(
    request: Request, model: Model, missing: MissingPairs, batch: Batch, started: datetime, low_precision: bool
) -> None:
    """Anew behind each case, so that an interrupted batch leaves tables of all that is done."""
    rows = [item for items in batch.measurements.values() for item in items]
    write_text(request.out / "volumes.csv", as_csv(rows))
    by_case = {case: [as_plain(item) for item in items] for case, items in batch.measurements.items()}
    write_text(request.out / "volumes.json", json.dumps(by_case, indent=1) + "\n")
    settings = {key: str(value) for key, value in asdict(request).items() if value is not None}
    record = {
        "started": started.isoformat(timespec="seconds"),
        "settings": settings | {"folds": ", ".join(model.folds), "precision": "bf16" if low_precision else "float32"},
        "model": {"trainer": model.trainer, "plans": model.plans.plans_name, "sha256": model.hashes},
        **({} if request.synthesis is None else {"synthesis": {"sha256": missing.hashes}}),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "cases": {
            case: {
                "files": {file.name: sha256(file) for file in sorted(set(files))},
                "seconds": batch.seconds.get(case),
                "warnings": batch.warnings[case],
            }
            for case, files in batch.files.items()
        },
        "failures": batch.failures,
    }
    write_text(request.out / "run.json", json.dumps(record, indent=1) + "\n")


def _refuse_existing(request: Request, names: list[str]) -> None:
    if not request.force and (there := [name for name in names if (request.out / name).exists()]):
        raise SetupError(f"{request.out / there[0]}: exists already ({len(there)} such); choose another -o, or --force")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder}: cannot be made ({error.strerror}); choose another -o") from None
    if not os.access(folder, os.W_OK):
        raise SetupError(f"{folder}: cannot be written to; choose another -o")


def torch_device(name: str) -> torch.device:
    """The device of a command's ``--device``; raises SetupError where there is none."""
    if name not in ("cpu", "cuda", "mps"):
        raise SetupError(f"--device {name!r}: cpu, cuda or mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda: torch sees no GPU here; predict with --device cpu, or see `ctnet doctor`")
    return torch.device(name)
