"""Which cases are learned from and which are only tested on: the pool, the test cases and the labelled draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.files import sha256

TEST_SHARE = 0.2


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
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
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
    known: Sequence[str], test: Sequence[str] | None, left_out: Sequence[str], pool: Sequence[str] | None, seed: int
) -> tuple[list[str], list[str]]:
    """Pool and test cases, both sorted.

    Args:
        known: All preprocessed labelled cases.
        test: The test cases, or None to draw a fifth.
        left_out: Cases to use nowhere.
        pool: The pool, or None for all that is left.
        seed: Of the drawing.

    Raises:
        DataError: If a test case is in the pool or among those left out, or one of the two would be empty.
    """
    usable = sorted(set(known) - set(left_out))
    if test is None:
        count = max(1, round(TEST_SHARE * len(usable)))
        outside = [case for case in usable if pool is None or case not in pool]
        test = np.random.RandomState(seed).permutation(outside)[:count].tolist()
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


def draw_cases(pool: Sequence[str], labels: Iterable[int], draws: int, seed: int) -> list[Draw]:
    """``draws`` different sets for each number of labels; the same seed gives the same sets, however many are asked.

    Raises:
        DataError: If the pool has fewer cases than labels are asked, or fewer different sets than draws.
    """
    found = []
    for count in dict.fromkeys(labels):
        if count > len(pool):
            raise DataError(f"--labels {count}: the pool has {len(pool)} labelled cases; ask for fewer")
        if draws > math.comb(len(pool), count):
            raise DataError(
                f"--draws {draws}: {len(pool)} cases give {math.comb(len(pool), count)} different draws of {count}"
            )
        random = np.random.RandomState([seed, count])
        seen: set[tuple[str, ...]] = set()
        while len(seen) < draws:
            cases = tuple(sorted(random.permutation(sorted(pool))[:count].tolist()))
            if cases not in seen:
                seen.add(cases)
                found.append(Draw(count, len(seen), cases))
    return found


def refuse_test_scans_among_unlabelled(
    unlabelled: Path, raw: Path, test: Sequence[str], channels: int, ending: str
) -> None:
    """Raise DataError if a scan of imagesUn is a test case: by its name, or by its bytes under another one."""
    if not unlabelled.is_dir():
        return
    scans = sorted(unlabelled.glob(f"*{ending}"))
    endings = [f"_{channel:04d}{ending}" for channel in range(channels)]
    files = {raw / f"{case}{end}": case for case in test for end in endings if (raw / f"{case}{end}").is_file()}
    names = {file.name for file in files}
    sizes = {file.stat().st_size for file in files}
    contents: dict[str, str] = {}
    for scan in scans:
        if scan.name in names:
            raise DataError(f"{scan}: is a test case, and imagesUn is pretrained on; remove it, or test on others")
        if scan.stat().st_size not in sizes:
            continue
        contents = contents or {sha256(file): case for file, case in files.items()}
        if case := contents.get(sha256(scan)):
            raise DataError(f"{scan}: is test case {case} under another name; remove it from imagesUn")
