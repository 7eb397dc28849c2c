"""``predict_scans``: check, say the cost, predict case by case, write labels, tables, the record and the report."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.evaluation.metrics import Structure, structures_from_labels
from ctnet_nnunet.evaluation.reference import FAR, Reference, differences, patient_axes, reference_of
from ctnet_nnunet.files import write_text
from ctnet_nnunet.inference.boxed import BoxJob, Outcome, require_extent
from ctnet_nnunet.inference.cost import Cost
from ctnet_nnunet.inference.deliver import Delivery, make_folder
from ctnet_nnunet.inference.engine import Engine
from ctnet_nnunet.inference.ensemble import Ensemble
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, find_cases, in_zip
from ctnet_nnunet.inference.inputs_volumes import check_choice, choose_volumes
from ctnet_nnunet.inference.measure import Measurement, as_csv, as_plain, measure
from ctnet_nnunet.inference.missing import MissingPairs
from ctnet_nnunet.inference.model import Model, load_model
from ctnet_nnunet.inference.prepare import CONVERTED, Prepared, identity, prepare
from ctnet_nnunet.inference.speed import speed_of
from ctnet_nnunet.laterality import sided_labels

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
    """What to predict, with what, into where; ``mirrors`` and ``step`` in place of those of ``speed``."""

    source: Path
    out: Path
    model: Path
    folds: Sequence[str] | None = None
    speed: str = "balanced"
    device: str = "cpu"
    engine: str = "auto"
    maps: bool = False
    report: bool = False
    force: bool = False
    channels: Sequence[str] = ()
    synthesis: Path | None = None
    only: Sequence[str] = ()
    box: bool = False
    mirrors: bool | None = None
    step: float | None = None
    volume: str | None = None


@dataclass
class Batch:
    """What was predicted: measurements and warnings by case, and the cases that failed with the reason.

    ``views`` are a case's first channel and its labels on one grid, for pictures; they last as long as the run.
    ``companions`` are further files of a case, such as its DICOM-SEG.
    """

    structures: tuple[Structure, ...]
    reference: Reference | None = None
    cases: dict[str, Case] = field(default_factory=dict)
    inputs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    views: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    companions: dict[str, list[Path]] = field(default_factory=dict)
    measurements: dict[str, list[Measurement]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, Outcome] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def predict_scans(request: Request, progress: Progress) -> Batch:
    """Predict every case of ``request.source``; a case that fails is recorded and the others go on.

    Raises:
        SetupError, DataError, PlanError, CheckpointError: If nothing can be predicted at all.
    """
    device = torch_device(request.device)
    check_choice(request.volume)
    model = load_model(request.model, request.folds)
    with tempfile.TemporaryDirectory(prefix="ctnet-predict-") as temporary:
        workspace = Path(temporary)
        missing = MissingPairs(model, request.synthesis, device)
        names = list(model.dataset_json["channel_names"].values())
        wanted = Wanted(names, model.file_ending, request.channels, missing.optional)
        found = find_cases(request.source, wanted, workspace)
        choose_volumes(found, request.volume)
        found.failures = {name: in_zip(reason, request.source, workspace) for name, reason in found.failures.items()}
        found = narrowed(found, request)
        structures = structures_from_labels(model.dataset_json["labels"])
        if request.box:
            require_extent(reference_of(model.extras, model.source), model.source)
        delivery = Delivery(model, structures, request.out, workspace, found.bids_root)
        _refuse_existing(request, delivery, found.cases)
        _require_writable(request.out)
        speed = speed_of(request.speed).changed(request.mirrors, request.step)
        ensemble = Ensemble(model, device, speed, progress.passed, request.engine, progress.line)
        return _predict_all(request, ensemble, missing, delivery, found, progress)


def _predict_all(
    request: Request,
    ensemble: Ensemble,
    missing: MissingPairs,
    delivery: Delivery,
    found: Found,
    progress: Progress,
) -> Batch:
    model = ensemble.model
    batch = Batch(delivery.structures, reference_of(model.extras, model.source), failures=found.failures)
    started = datetime.now().astimezone()
    for number, case in enumerate(found.cases, start=1):
        begun = time.monotonic()
        try:
            _predict_case(ensemble, missing, case, delivery, request, batch, progress, (number, len(found.cases)))
        except CTNetError as error:
            batch.failures[case.name] = in_zip(str(error), request.source, delivery.workspace)
            progress.line(f"{case.name}: FAILED: {batch.failures[case.name]}")
            continue
        batch.seconds[case.name] = round(time.monotonic() - begun, 1)
        if request.report:
            from ctnet_nnunet.inference.report import write_scan_page

            write_scan_page(request.out, model, batch, case.name)
        _write_tables(request, model, missing, batch, started, ensemble.engine)
    if not batch.labels:
        name, reason = next(iter(batch.failures.items()))
        raise DataError(f"no case could be predicted; the first, {name}: {reason}")
    if request.report:
        from ctnet_nnunet.inference.report import write_batch_page

        write_batch_page(request.out, model, batch)
    return batch


def narrowed(found: Found, request: Request) -> Found:
    """What was found, cut to the cases that are asked for by name.

    Raises:
        DataError: One of them is not there.
    """
    if not request.only:
        return found
    wanted = set(request.only)
    there = {case.name for case in found.cases} | set(found.failures)
    if unknown := sorted(wanted - there):
        some = ", ".join(sorted(there)[:8])
        raise DataError(f"--only {unknown[0]}: no such scan in {request.source}; it holds {some}")
    cases = [case for case in found.cases if case.name in wanted]
    return Found(cases, {name: why for name, why in found.failures.items() if name in wanted}, found.bids_root)


def _predict_case(
    ensemble: Ensemble,
    missing: MissingPairs,
    case: Case,
    delivery: Delivery,
    request: Request,
    batch: Batch,
    progress: Progress,
    place: tuple[int, int],
) -> None:
    model = ensemble.model
    trained = batch.reference.orientation if batch.reference else None
    reader = model.plans.image_reader_writer_class.__name__
    prepared = prepare(case, model.file_ending, reader, trained, delivery.workspace / "scans")
    model.check_resampled(prepared.size, prepared.spacing, case.images[0].path)
    for note in prepared.notes:
        progress.line(f"{case.name}: {note}")
    warnings = [*missing.words(case), *_warnings(prepared, model, batch.reference, case, request.box)]
    for warning in warnings:
        progress.line(f"{case.name}: WARNING: {warning}")
    image, properties = ensemble.preprocess(prepared.files)
    before = ensemble.passes
    bridge = partial(missing.bridged, case)

    def begin(cost: Cost) -> None:
        progress.case(*place, case.name, cost)

    if request.box and batch.reference is not None:
        job = BoxJob(ensemble, prepared, batch.structures, batch.reference, bridge, begin)
        prediction, batch.boxes[case.name] = job.predict(image, properties, request.maps)
        progress.line(f"{case.name}: {batch.boxes[case.name].words}")
        for warning in batch.boxes[case.name].warnings:
            progress.line(f"{case.name}: WARNING: {warning}")
            warnings.append(warning)
    else:
        begin(ensemble.cost(image, properties))
        with bridge(image) as complete:
            prediction = ensemble.predict(complete, properties, request.maps)
    batch.passes[case.name] = ensemble.passes - before
    make_folder(delivery.out)  # not before: of a batch that fails as a whole nothing is left
    on_scan = delivery.write_labels(case, prepared, prediction.labels, properties)
    for name, values in prediction.maps.items():
        delivery.write_map(case, prepared, name, values, on_scan)
    spacing = [float(size) for size in properties["spacing"]]
    batch.measurements[case.name] = measure(case.name, prediction, batch.structures, spacing)
    batch.cases[case.name], batch.labels[case.name] = case, delivery.label_file(case)
    batch.inputs[case.name] = [identity(image) for image in case.images]
    batch.views[case.name] = (prepared.files[0], on_scan)
    batch.warnings[case.name] = warnings
    try:
        batch.companions[case.name] = delivery.write_companions(case)
    except CTNetError as error:  # the label map is whole and stays
        batch.companions[case.name] = []
        batch.failures[f"{case.name}, beside its label map"] = str(error)
        progress.line(f"{case.name}: FAILED beside its label map: {error}")


def _warnings(
    prepared: Prepared, model: Model, reference: Reference | None, case: Case, box: bool = False
) -> list[str]:
    """What makes this scan unlike the training cases, by its header."""
    sided = sided_labels(model.dataset_json["labels"]).any and prepared.letters != "2D"
    unknown = reference is None or reference.orientation is None
    warnings = []
    if sided and unknown and not case.dicom and prepared.letters != CONVERTED:
        warnings.append(
            f"the model does not say how its training scans lie, this one lies {prepared.letters}: left and right could"
            " be exchanged; run `ctnet reference` where the training data is, or compare with `ctnet convert`"
        )
    if reference is not None:
        spacing, extent = patient_axes(prepared.letters, prepared.spacing, prepared.size)
        offered = reference.places_structures and not box and len(extent) == 3
        larger = offered and any(a > FAR * b for a, b in zip(extent, reference.extent_mm.high, strict=True))
        hint = "; --box predicts only where the structures are" if larger else ""
        far = differences(reference, spacing, extent)
        return [*warnings, *(f"{text}; check the result{hint if 'view' in text else ''}" for text in far)]
    planned = sorted(float(size) for size in model.configuration.spacing)
    given = sorted(float(size) for size in prepared.spacing)[-len(planned) :]
    far = [f"{a:.2g} mm instead of {b:.2g}" for a, b in zip(given, planned, strict=True)
           if max(a / b, b / a) > SPACING_FACTOR]  # fmt: skip
    if far:
        warnings.append(f"voxels are far from the training's: {', '.join(far)}; check the result")
    return warnings


def write_volumes(out: Path, measurements: Mapping[str, Sequence[Measurement]]) -> None:
    """Write ``volumes.csv`` and ``volumes.json``."""
    write_text(out / "volumes.csv", as_csv([item for items in measurements.values() for item in items]))
    by_case = {case: [as_plain(item) for item in items] for case, items in measurements.items()}
    write_text(out / "volumes.json", json.dumps(by_case, indent=1) + "\n")


def _write_tables(
    request: Request, model: Model, missing: MissingPairs, batch: Batch, started: datetime, engine: Engine
) -> None:
    """Anew behind each case, so that an interrupted batch leaves tables of all that is done."""
    write_volumes(request.out, batch.measurements)
    settings = {key: str(value) for key, value in asdict(request).items() if value is not None and key != "only"}
    record = {
        "started": started.isoformat(timespec="seconds"),
        "settings": settings | {"folds": ", ".join(model.folds), "engine": engine.name, "precision": engine.precision},
        "model": {"trainer": model.trainer, "plans": model.plans.plans_name, "sha256": model.hashes},
        **({} if request.synthesis is None else {"synthesis": {"sha256": missing.hashes}}),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "cases": {
            case: {
                "inputs": inputs,
                "labels": batch.labels[case].relative_to(request.out).as_posix(),
                "companions": [file.name for file in batch.companions.get(case, [])],
                "passes": batch.passes[case],
                "seconds": batch.seconds.get(case),
                "warnings": batch.warnings[case],
                **({"box": asdict(batch.boxes[case])} if case in batch.boxes else {}),
            }
            for case, inputs in batch.inputs.items()
        },
        "failures": batch.failures,
    }
    write_text(request.out / "run.json", json.dumps(record, indent=1) + "\n")


def _refuse_existing(request: Request, delivery: Delivery, cases: Sequence[Case]) -> None:
    there = [file for case in cases if (file := delivery.label_file(case)).exists()]
    if there and not request.force:
        raise SetupError(f"{there[0]}: exists already ({len(there)} such); choose another -o, or --force")


def _require_writable(folder: Path) -> None:
    """Before the work: the folder, or the one in which it would be made, takes files."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise SetupError(f"{there}: is no folder; choose another -o")
    try:
        with tempfile.TemporaryFile(dir=there):  # rights alone do not say it: a disk may be mounted to be read only
            pass
    except OSError as error:
        raise SetupError(f"{there}: cannot be written to ({error.strerror}); choose another -o") from None


def torch_device(name: str) -> torch.device:
    """The device of a command's ``--device``; raises SetupError where there is none."""
    if name not in ("cpu", "cuda", "mps"):
        raise SetupError(f"--device {name!r}: cpu, cuda or mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise SetupError("--device cuda: torch sees no GPU here; predict with --device cpu, or see `ctnet doctor`")
    return torch.device(name)
