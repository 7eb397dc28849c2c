"""Folds in which a patient is on one side only, optionally with every site in every fold."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from ctnet_nnunet.conversion.cases import Case
from ctnet_nnunet.conversion.patients import patient_of

Split = dict[str, list[str]]


def make_splits(
    cases: Sequence[Case], folds: int, seed: int, by_site: bool, given: Mapping[str, int] | None = None
) -> tuple[list[Split], list[str]]:
    """nnU-Net's ``splits_final.json`` for the labelled ``cases``, and what is to be said about it.

    Args:
        folds: how many; fewer where there are fewer patients.
        by_site: spread the cases of each site over the folds.
        given: case → fold, where a table decides; already one fold for a patient.

    Returns:
        One split a fold, with sorted case names; none where only one patient is there.
    """
    ordered = sorted(cases, key=lambda case: case.name)
    if given:
        return _from_table(ordered, given)
    patients = sorted({patient_of(case) for case in ordered})
    count = min(folds, len(patients))
    if count < 2:
        return [], [f"{len(patients)} patient: no folds were written; train fold all"]
    notes = [_fewer_folds(count)] if count < folds else []
    numbers = _assign(ordered, count, seed, by_site)
    return [_split(ordered, numbers, fold) for fold in range(count)], notes


def _assign(cases: Sequence[Case], count: int, seed: int, by_site: bool) -> dict[str, int]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [patient_of(case) for case in cases]
    classes = [case.site if by_site else "" for case in cases]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a site with fewer cases than folds is no mistake
        parts = list(splitter.split(groups, classes, groups))
    return {cases[int(index)].name: fold for fold, (_, held_out) in enumerate(parts) for index in held_out}


def _from_table(cases: Sequence[Case], given: Mapping[str, int]) -> tuple[list[Split], list[str]]:
    present = sorted({given[case.name] for case in cases if case.name in given})
    if len(present) < 2:
        return [], ["the table puts all cases into one fold: no folds were written"]
    numbers = {case.name: present.index(given[case.name]) for case in cases if case.name in given}
    return [_split(cases, numbers, fold) for fold in range(len(present))], []


def _split(cases: Sequence[Case], fold_of: Mapping[str, int], fold: int) -> Split:
    names = [case.name for case in cases if case.name in fold_of]
    return {
        "train": [name for name in names if fold_of[name] != fold],
        "val": [name for name in names if fold_of[name] == fold],
    }


def _fewer_folds(count: int) -> str:
    return (
        f"only {count} patients, so only folds 0 to {count - 1}; nnU-Net would draw a higher fold at random, across "
        "patients: do not train one"
    )
