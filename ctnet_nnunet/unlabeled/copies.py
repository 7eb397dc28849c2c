"""Preprocessed scans that are a labelled case under another name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.unlabeled.cases import training_files
from ctnet_nnunet.unlabeled.records import read_record, sha1


def refuse_copies(
    folder: Path,
    scans: Iterable[str],
    raw: Path,
    dataset_json: Mapping[str, Any],
    cases: Collection[str],
    what: str = "validation case",
) -> None:
    """Compare the files that scans were made from with those of labelled cases, by content.

    Preprocessing refuses such scans; a scan that was preprocessed before it was annotated may still lie there. Sizes
    are compared first, so that few files are read. A file that was written anew (compressed otherwise, say) is not
    found.

    Args:
        folder: Of the preprocessed scans, with their records.
        scans: The complete ones.
        raw: The raw dataset folder; need not exist.
        dataset_json: Of the dataset.
        cases: Labelled cases that may not be among the scans: a fold's validation cases.
        what: What these are, for the message.

    Raises:
        DataError: The first scan that is a case.
    """
    records = {scan: read_record(folder, scan) or {} for scan in scans}
    inputs = [(scan, entry) for scan, record in records.items() for entry in record.get("inputs", ())]
    sizes = {entry.get("size") for _, entry in inputs}
    made_of = {entry.get("sha1"): scan for scan, entry in inputs}
    files = training_files(raw, dataset_json) if sizes else {}
    for case in sorted(cases):
        for file in files.get(case, ()):
            if file.is_file() and file.stat().st_size in sizes and (scan := made_of.get(sha1(file))):
                raise DataError(
                    f"{scan} in {folder} is the same file as {file.name}, a {what}; remove it from imagesUn and run "
                    "ctnet preprocess-unlabeled again"
                )
