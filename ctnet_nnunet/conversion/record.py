"""What a dataset says about itself: dataset.json, the folds, the summary page, and the record of the conversion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ctnet_nnunet
from ctnet_nnunet.conversion.cases import TRAINING, Image, Listing, relative
from ctnet_nnunet.conversion.labels import LabelMap
from ctnet_nnunet.conversion.patients import patient_of
from ctnet_nnunet.conversion.report import Report
from ctnet_nnunet.conversion.summary import write_page
from ctnet_nnunet.conversion.target import RECORD, SPLITS, write_json
from ctnet_nnunet.conversion.writer import FILE_ENDING
from ctnet_nnunet.folder_lock import LOCK

PAGE = "conversion/summary.html"


def write_dataset(listing: Listing, report: Report, folder: Path, name: str) -> None:
    """dataset.json, the folds, the summary page and, last, the record with the list of all files."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(exist_ok=True)
    labels = report.labels or LabelMap((), {0: 0})
    content: dict[str, object] = {
        "channel_names": {str(index): name for index, name in enumerate(listing.channels)},
        "labels": labels.labels,
        "numTraining": sum(case.destination == TRAINING for case in report.written),
        "file_ending": FILE_ENDING,
    }
    if listing.regions:
        content["labels"] = {
            "background": 0,
            **{name: [labels.labels[part] for part in parts] for name, parts in listing.regions.items()},
        }
        content["regions_class_order"] = _class_order(listing.regions, labels)
    write_json(folder / "dataset.json", content)
    if report.splits:
        write_json(folder / SPLITS, report.splits)
    write_page(folder / PAGE, name, listing, report.outcomes, report)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    write_json(folder / RECORD, _record(listing, report, labels, files))


def _class_order(regions: dict[str, list[str]], labels: LabelMap) -> list[int]:
    """For each region the label that is left when all later, smaller regions are taken away."""
    order = []
    remaining = list(regions.values())
    for index, parts in enumerate(remaining):
        later = {part for smaller in remaining[index + 1 :] for part in smaller}
        own = [part for part in parts if part not in later]
        order.append(labels.labels[own[0]])
    return order


def _record(listing: Listing, report: Report, labels: LabelMap, files: Sequence[str]) -> dict[str, object]:
    """What was done, with the way back from labels to the source's numbers; no date, so that it repeats."""
    groups = {patient: index for index, patient in enumerate(sorted({patient_of(c) for c in report.written}))}
    return {
        "written_by": f"ctnet convert {ctnet_nnunet.__version__}",
        "label_map": {"names": dict(enumerate(("background", *labels.names))), "source_numbers": labels.inverse()},
        "cases": {
            case.name: {
                "images": [_name(image, listing.root) for image in case.images],
                "label": _name(case.label, listing.root) if case.label else None,
                "part": case.destination,
                # A number, because a patient's own id has no place in a data set that is passed on.
                "patient": groups[patient_of(case)],
                "site": case.site or None,
                "stored_as": report.outcomes[case.name].stored_as,
                "notes": list(report.outcomes[case.name].notes),
            }
            for case in report.written
        },
        "refused": report.refused,
        "notes": report.notes,
        "files": list(files),
    }


def _name(image: Image, root: Path) -> str:
    name = relative(image.path, root)
    return name if image.volume is None else f"{name}#{image.volume}"
