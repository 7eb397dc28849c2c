"""``synthesize_scans``: write the pair of sequences that scans lack, made by a generator of nnUNetTrainerCMFT."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ctnet_nnunet.architectures.cross_modality import Pair
from ctnet_nnunet.errors import CTNetError, DataError, SetupError
from ctnet_nnunet.evaluation import provenance
from ctnet_nnunet.files import sha256, write_text
from ctnet_nnunet.image_check import check_image_file, refuse_other_grids
from ctnet_nnunet.inference.ensemble import Ensemble
from ctnet_nnunet.inference.inputs import Case, Found, Wanted, find_cases
from ctnet_nnunet.inference.synthesis import (
    Synthesiser,
    check_writable,
    in_the_scans_grid,
    load_synthesiser,
    write_channels,
)

RECORD = "synthesis.json"


@dataclass
class Syntheses:
    """Case → what was written, and case → why it failed."""

    written: dict[str, list[Path]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def synthesize_scans(
    source: Path,
    out: Path,
    folder: Path,
    device: torch.device,
    pair: Pair | None = None,
    force: bool = False,
    line: Callable[[str], None] = lambda text: None,
) -> Syntheses:
    """Write the missing pair of every case, or ``pair`` of all; a case that fails is recorded and the others go on.

    Args:
        source: Scans in nnU-Net's naming; a case may lack all channels of one pair.
        out: Folder for the made channels, under the names that nnU-Net would give them, and for a record.
        folder: See :func:`~ctnet_nnunet.inference.synthesis.load_synthesiser`.
        device: To generate on.
        pair: Make this pair even where it is there; None makes what is missing.
        force: Write over earlier files.
        line: Told what is done.

    Raises:
        DataError, SetupError, PlanError, CheckpointError: If nothing can be made at all.
    """
    synthesiser = load_synthesiser(folder, device)
    model = synthesiser.model
    check_writable(model)
    names = list(model.dataset_json["channel_names"].values())
    with tempfile.TemporaryDirectory(prefix="ctnet-synthesize-") as workspace:
        found = find_cases(source, Wanted(names, model.file_ending, optional=synthesiser.pairs), Path(workspace))
        return _all(synthesiser, found, out, device, pair, force, line)


def _all(
    synthesiser: Synthesiser,
    found: Found,
    out: Path,
    device: torch.device,
    pair: Pair | None,
    force: bool,
    line: Callable[[str], None],
) -> Syntheses:
    cases = found.cases
    ensemble, result = Ensemble(synthesiser.model, device, "best", engine="torch"), Syntheses(failures=found.failures)
    for case in cases:
        try:
            result.written[case.name] = _one(synthesiser, ensemble, case, out, pair, force)
            line(f"{case.name}: wrote {', '.join(file.name for file in result.written[case.name])}")
        except CTNetError as error:
            result.failures[case.name] = str(error)
            line(f"{case.name}: FAILED: {error}")
    if not result.written:
        name, reason = next(iter(result.failures.items()))
        raise DataError(f"no case could be synthesised; the first, {name}: {reason}")
    _write_record(synthesiser, cases, result, out)
    return result


def _one(
    synthesiser: Synthesiser, ensemble: Ensemble, case: Case, out: Path, pair: Pair | None, force: bool
) -> list[Path]:
    model = synthesiser.model
    target = _target(synthesiser, case, pair)
    channels = synthesiser.pairs[0 if target == "a" else 1]
    files = [out / f"{case.name}_{channel:04d}{model.file_ending}" for channel in channels]
    if not force and any(file.exists() for file in files):
        raise SetupError(f"{files[0]}: exists already; choose another -o, or --force")
    given = _files(case, model.file_ending)
    headers = [check_image_file(file, voxels=True) for file in given]
    refuse_other_grids(case.name, [(file.name, header) for file, header in zip(given, headers, strict=True)])
    image, properties = ensemble.preprocess(given)
    made = synthesiser.completed(image, target)[list(channels)]
    out.mkdir(parents=True, exist_ok=True)
    arrays = in_the_scans_grid(model, made, properties)
    return write_channels(arrays, channels, given[0], out / case.name, model.file_ending)


def _files(case: Case, ending: str) -> list[Path]:
    """One a channel; what is written lies in their grid, so they are taken as they are and in the model's format."""
    for image in case.images:
        if image.slices or not image.path.name.endswith(ending):
            raise DataError(f"{image}: synthesis takes *{ending} only; convert it first with `ctnet convert`")
    return [image.path for image in case.images]


def _target(synthesiser: Synthesiser, case: Case, pair: Pair | None) -> Pair:
    if not case.missing:
        if pair is None:
            raise DataError(f"{case.name}: has all sequences; say which to make with --pair a or --pair b")
        return pair
    missing: Pair = "a" if sorted(case.missing) == sorted(synthesiser.pairs[0]) else "b"
    if pair not in (None, missing):
        raise DataError(f"{case.name}: lacks pair {missing}, so pair {pair} cannot be made of it; leave --pair out")
    return missing


def _write_record(synthesiser: Synthesiser, cases: list[Case], result: Syntheses, out: Path) -> None:
    """What the intensities are, and where they come from."""
    names = synthesiser.model.dataset_json["channel_names"]
    record = {
        "intensities": "normalised as in training (z-scores for ZScoreNormalization), generated, not measured",
        "pairs": [[str(names[str(channel)]) for channel in pair] for pair in synthesiser.pairs],
        "model": {"folder": str(synthesiser.model.source), "sha256": synthesiser.model.hashes},
        "versions": provenance.versions(),
        "cases": {
            case.name: {
                "from": {file.name: sha256(file) for file in sorted({image.path for image in case.images})},
                "made": [file.name for file in result.written[case.name]],
            }
            for case in cases
            if case.name in result.written
        },
        "failures": result.failures,
    }
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
