"""Which cases are learned from and which are only tested on: the pool, the test cases and the labelled draws."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.files import sha256

TEST_SHARE = 0.2
REMOVE = "remove it from imagesUn and run ctnet preprocess-unlabeled again"


@dataclass(frozen=True)
class Draw:
    """The labelled cases of one repetition."""

    labels: int
    number: int
    cases: tuple[str, ...]


def read_case_list(file: Path, what: str, known: Sequence[str]) -> list[str]:
    """Case names, one a line; empty lines and lines that begin with # do not count.

    Raises:
        SetupError: If the file cannot be read or names nothing.
        DataError: If it names a case that is not preprocessed.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"{what} {file}: cannot be read as text ({error}); give a file with one case a line") from None
    names = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not names:
        raise SetupError(f"{what} {file}: names no case; write one a line")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{what} {file}: {unknown[0]} is no preprocessed case ({len(unknown)} such); cases are named "
            f"without channel and ending, like {known[0]}"
        )
    return names


def split_cases(
    known: Sequence[str],
    test: Sequence[str] | None,
    left_out: Sequence[str],
    pool: Sequence[str] | None,
    seed: int,
    patient_pattern: str | None = None,
) -> tuple[list[str], list[str]]:
    """Pool and test cases, both sorted.

    Args:
        known: All preprocessed labelled cases.
        test: The test cases, or None to draw a fifth.
        left_out: Cases to use nowhere.
        pool: The pool, or None for all that is left.
        seed: Of the drawing.
        patient_pattern: Draw whole patients.

    Raises:
        DataError: If a test case is in the pool or among those left out, or one of the two would be empty.
    """
    usable = sorted(set(known) - set(left_out))
    if test is None:
        outside = [case for case in usable if pool is None or case not in pool]
        patients = sorted({patient_of(case, patient_pattern) for case in outside})
        count = max(1, round(TEST_SHARE * len({patient_of(case, patient_pattern) for case in usable})))
        drawn = set(np.random.RandomState(seed).permutation(patients)[:count].tolist())
        test = [case for case in outside if patient_of(case, patient_pattern) in drawn]
    if both := sorted(set(test) & set(left_out)):
        raise DataError(f"--test-cases and --leave-out both name {both[0]}; keep it in one")
    if pool is not None and (both := sorted(set(test) & set(pool))):
        raise DataError(
            f"test case {both[0]} is in the pool ({len(both)} such); what is tested on must be in no training and in "
            "no pretraining: take it out of --pool-cases or of --test-cases"
        )
    chosen = sorted(set(usable) - set(test)) if pool is None else sorted(set(pool) - set(left_out))
    if not chosen or not test:
        raise DataError(f"{len(usable)} cases give a pool of {len(chosen)} and {len(test)} test cases; both need some")
    return chosen, sorted(test)


def draw_cases(
    pool: Sequence[str], labels: Iterable[int], draws: int, seed: int, patient_pattern: str | None = None
) -> list[Draw]:
    """``draws`` different sets for each number of labels; the same seed gives the same sets, however many are asked.

    With ``patient_pattern`` a label is a patient, who comes with all cases.

    Raises:
        DataError: If the pool has fewer cases than labels are asked, or fewer different sets than draws.
    """
    units: dict[str, list[str]] = {}
    for case in sorted(pool):
        units.setdefault(patient_of(case, patient_pattern), []).append(case)
    what = "labelled cases" if patient_pattern is None else "labelled patients"
    found = []
    for count in dict.fromkeys(labels):
        if count > len(units):
            raise DataError(f"--labels {count}: the pool has {len(units)} {what}; ask for fewer")
        if draws > math.comb(len(units), count):
            raise DataError(
                f"--draws {draws}: {len(units)} {what} give {math.comb(len(units), count)} different draws of {count}"
            )
        random = np.random.RandomState([seed, count])
        seen: set[tuple[str, ...]] = set()
        while len(seen) < draws:
            chosen = random.permutation(sorted(units))[:count].tolist()
            cases = tuple(sorted(case for unit in chosen for case in units[unit]))
            if cases not in seen:
                seen.add(cases)
                found.append(Draw(count, len(seen), cases))
    return found


def patient_of(case: str, pattern: str | None) -> str:
    """The first group of ``pattern`` in a case's name; without a pattern every case is a patient of its own.

    Raises:
        SetupError: No regular expression with a group, or one that does not fit the case.
    """
    if pattern is None:
        return case
    try:
        match = re.search(pattern, case)
    except re.error as error:
        raise SetupError(f"--patient-pattern {pattern!r}: is no regular expression ({error})") from None
    if match is None or not match.re.groups:
        raise SetupError(
            f"--patient-pattern {pattern!r}: finds no group in the case {case}; put the patient in brackets"
        )
    return str(match[1])


def refuse_shared_patients(pool: Sequence[str], test: Sequence[str], pattern: str | None) -> None:
    """Raise DataError if a patient has cases in the pool and among the test cases."""
    if pattern is None:
        return
    learned = {patient_of(case, pattern): case for case in pool}
    for case in test:
        if twin := learned.get(patient_of(case, pattern)):
            raise DataError(
                f"test case {case} and {twin} of the pool are of one patient; name whole patients in --test-cases"
            )


def refuse_studies(
    studies: Iterable[tuple[str, str]], hidden: Sequence[str], pattern: str | None, what: str
) -> None:
    """Raise DataError if a study of imaging planes (name, group) is of a hidden case or, with ``pattern``, its patient.

    A study's name and group may be the patient's own, or hold it as a case's name does. ``what`` the hidden cases are.
    """
    owners = {patient_of(case, pattern): case for case in hidden} | {case: case for case in hidden}
    for name, group in studies:
        for text in filter(None, (name, group)):
            fitting = re.search(pattern, text) if pattern is not None else None
            if case := owners.get(text) or (owners.get(str(fitting[1])) if fitting else None):
                raise DataError(
                    f"planes.json: the study {name} is of the {what} {case}, or of its patient, and pretraining "
                    "would see it; convert the pool's studies alone"
                )


def refuse_unlabelled_names(scans: Iterable[str], hidden: Sequence[str], pattern: str | None, what: str) -> None:
    """Raise DataError if a scan of imagesUn has the name of a hidden case or, with ``pattern``, is of its patient."""
    owners = {patient_of(case, pattern): case for case in hidden}
    for scan in scans:
        if scan in hidden:
            raise DataError(f"imagesUn: {scan} is a {what}, and imagesUn is pretrained on; {REMOVE}")
        fitting = re.search(pattern, scan) if pattern is not None else None
        if fitting and (case := owners.get(str(fitting[1]))):
            raise DataError(f"imagesUn: {scan} is of the patient of {what} {case}, and is pretrained on; {REMOVE}")


def refuse_unlabelled_contents(scans: Iterable[Path], hidden: Mapping[Path, str], what: str) -> None:
    """Raise DataError if a file of imagesUn has the bytes of a hidden case's (file → case)."""
    sizes = {file.stat().st_size for file in hidden}
    contents: dict[str, str] = {}
    for scan in scans:
        if scan.stat().st_size not in sizes:
            continue
        contents = contents or {sha256(file): case for file, case in hidden.items()}
        if case := contents.get(sha256(scan)):
            raise DataError(f"{scan}: is {what} {case} under another name; {REMOVE}")
