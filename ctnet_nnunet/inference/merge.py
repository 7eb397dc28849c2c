"""Put together what several runs of ``ctnet predict`` did with parts of the same scans: files, tables, record."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.files import write_text
from ctnet_nnunet.inference.measure import Measurement
from ctnet_nnunet.inference.run import write_volumes

RECORD, VOLUMES = "run.json", "volumes.json"
SHARED = ("dataset_description.json",)
"""Files that every run of a BIDS dataset writes alike."""


@dataclass(frozen=True)
class Part:
    """What one run left in its folder.

    Attributes:
        folder: Its output folder.
        record: Its ``run.json``.
        volumes: Its measurements, case by case.
    """

    folder: Path
    record: dict[str, Any]
    volumes: dict[str, list[Measurement]]

    def cases(self, report: bool) -> list[str]:
        """The cases that are whole: label map, measurements and, where asked for, their page."""
        return [
            case
            for case, entry in self.record["cases"].items()
            if case in self.volumes
            and (self.folder / entry["labels"]).is_file()
            and (not report or (self.folder / f"{case}.html").is_file())
        ]


def read_part(folder: Path) -> Part | None:
    """What a run left; None where it left no record yet.

    Raises:
        SetupError: Its record cannot be read.
    """
    if not (folder / RECORD).is_file() or not (folder / VOLUMES).is_file():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        plain = json.loads((folder / VOLUMES).read_text(encoding="utf-8"))
        if not isinstance(record["cases"], dict) or not isinstance(record["failures"], dict):
            raise TypeError("cases and failures are tables")
        volumes = {case: [_measurement(item) for item in items] for case, items in plain.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{folder / RECORD}: is no record of ctnet predict ({error!r}); choose another -o") from error
    return Part(folder, record, volumes)


def _measurement(item: dict[str, Any]) -> Measurement:
    def number(key: str) -> float:
        return math.nan if item[key] is None else float(item[key])

    return Measurement(
        case=str(item["case"]),
        structure=str(item["structure"]),
        volume_ml=number("volume_ml"),
        fold_sd_ml=number("fold_sd_ml"),
        fold_dice=number("fold_dice"),
        entropy=number("entropy"),
        flags=tuple(str(flag) for flag in item["flags"]),
    )


def move_case(part: Part, case: str, out: Path, ending: str) -> None:
    """Move all files of a whole case to the same places below ``out``; the label map last, so that it shows the end.

    Args:
        ending: Of label maps.

    Raises:
        SetupError: A file cannot be moved.
    """
    labels = Path(part.record["cases"][case]["labels"])
    stem = labels.name.removesuffix(ending)
    beside = [labels.with_name(f"{stem}{ending}") for ending in
              ("_entropy.nii.gz", "_disagreement.nii.gz", ".tsv", ".json")]  # fmt: skip
    pages = [Path(f"{case}.html"), Path(f"{case}_viewer.html")]
    companions = [Path(name) for name in part.record["cases"][case]["companions"]]
    for name in (*beside, *pages, *companions, *map(Path, SHARED), labels):
        source, target = part.folder / name, out / name
        if not source.is_file():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        except OSError as error:
            raise SetupError(f"{target}: could not be moved there ({error.strerror}); free it and repeat") from None


def merged_record(parts: Sequence[Part], cases: Iterable[str], failures: dict[str, str], extra: dict[str, Any]) -> Any:
    """One ``run.json``: the first part's settings, model and versions, every case's entry, all failures.

    Args:
        parts: A later one's entry of a case counts.
        cases: In the order of the merged tables.
        extra: Further keys.
    """
    entries: dict[str, Any] = {}
    for part in parts:
        entries |= part.record["cases"]
    first = parts[0].record
    return {
        **{key: value for key, value in first.items() if key not in ("cases", "failures")},
        **extra,
        "cases": {case: entries[case] for case in cases},
        "failures": failures,
    }


def write_merged(out: Path, record: dict[str, Any], volumes: dict[str, list[Measurement]]) -> None:
    """Write the merged tables and, behind them, the record."""
    write_volumes(out, {case: volumes[case] for case in record["cases"]})
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
