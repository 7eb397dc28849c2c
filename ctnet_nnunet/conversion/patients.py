"""Who belongs to whom: the patient, the site and, where a table says it, the fold of every case."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from ctnet_nnunet.conversion.cases import Case, Listing
from ctnet_nnunet.errors import DataError

COLUMNS = ("case", "label", "patient", "site", "fold")
"""The columns with a meaning of their own; any other is a channel, or belongs to the source."""


@dataclass(frozen=True)
class Row:
    """One line of the patients table; ``fold`` is None where the table has none."""

    patient: str
    site: str = ""
    fold: int | None = None


def read_table(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV or TSV file with a heading line; values stripped, the names of :data:`COLUMNS` in lower case.

    Raises:
        DataError: unreadable, or a required column is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    heading = lines[0] if lines else ""
    separator = next((s for s in ("\t", ";") if s in heading), ",")
    rows = list(csv.DictReader(lines, delimiter=separator))
    found = [_column(str(name)) for name in (rows[0] if rows else {})]
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)} (found: {', '.join(found) or 'no rows'})")
    return [{_column(str(k)): (v or "").strip() for k, v in row.items() if k is not None} for row in rows]


def _column(name: str) -> str:
    stripped = name.strip()
    return stripped.lower() if stripped.lower() in COLUMNS else stripped


def read_patients(path: Path) -> dict[str, Row]:
    """Case → its row, from a table with the columns case, patient and, optionally, site and fold.

    Raises:
        DataError: a case on two lines; a fold that is no number.
    """
    found: dict[str, Row] = {}
    for number, row in enumerate(read_table(path, ("case", "patient")), start=2):
        fold = row.get("fold", "")
        if fold and not fold.isdigit():
            raise DataError(f"{path}: line {number}: fold {fold!r} is no number")
        if row["case"] in found:
            raise DataError(f"{path}: line {number}: {row['case']} is listed twice")
        found[row["case"]] = Row(row["patient"], row.get("site", ""), int(fold) if fold else None)
    return found


def assign_patients(listing: Listing, table: Path | None, pattern: str | None) -> dict[str, int]:
    """Give every case its patient and site; returns the folds that the table gives, case → fold.

    A table goes before the pattern, the pattern (its first group, searched in the case's name) before what the source
    knows. Labelled cases that neither covers are refused: a guess could put one person on both sides of a fold.

    Raises:
        DataError: the table or the pattern itself cannot be used.
    """
    rows = read_patients(table) if table else {}
    compiled = _compile(pattern)
    kept: list[Case] = []
    for case in listing.cases:
        row = _row_of(case, rows, table is not None, compiled)
        if isinstance(row, str):
            listing.refused[case.name] = row
        else:
            kept.append(replace(case, patient=row.patient or case.patient, site=row.site or case.site))
    listing.cases = kept
    if not table and not pattern and all(not case.patient for case in kept) and len(kept) > 1:
        listing.notes.append(
            "each case was taken for a patient of its own; where a person has several scans, say so with "
            "--patient-pattern or --patients, else folds leak"
        )
    folds = {case.name: fold for case in kept if (fold := rows.get(case.name, Row("")).fold) is not None}
    return _one_fold_each(listing, folds, table)


def patient_of(case: Case) -> str:
    """What groups the case: its patient, or itself."""
    return case.patient or f"case {case.name}"


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise DataError(f"--patient-pattern {pattern!r}: is no regular expression ({error})") from None
    if compiled is not None and compiled.groups < 1:
        raise DataError(f"--patient-pattern {pattern!r}: put the patient's part in brackets, as in '(sub-[0-9]+)'")
    return compiled


def _row_of(case: Case, rows: dict[str, Row], has_table: bool, pattern: re.Pattern[str] | None) -> Row | str:
    """The patient's row, or why the case is refused."""
    if case.name in rows:
        return rows[case.name]
    if pattern is not None and (match := pattern.search(case.name)):
        return Row(match.group(1))
    if case.label is None:  # scans of imagesUn are in no fold
        return Row("")
    if pattern is not None:
        return f"does not match --patient-pattern {pattern.pattern!r}; correct it"
    return "is not in the --patients table; add a line" if has_table else Row("")


def _one_fold_each(listing: Listing, folds: dict[str, int], table: Path | None) -> dict[str, int]:
    """Refuse every case of a patient whom the table puts into several folds, or into one only in part."""
    labelled = [case for case in listing.cases if case.label]
    if not folds:
        return {}
    by_patient: dict[str, set[int | None]] = defaultdict(set)
    for case in labelled:
        by_patient[patient_of(case)].add(folds.get(case.name))
    for case in labelled:
        given = by_patient[patient_of(case)]
        if len(given) > 1 or None in given:
            shown = ", ".join(sorted("none" if fold is None else str(fold) for fold in given))
            listing.refused[case.name] = f"{table}: patient {case.patient} is in the folds {shown}; give one fold"
    listing.cases = [case for case in listing.cases if case.name not in listing.refused]
    return {case: fold for case, fold in folds.items() if case not in listing.refused}
