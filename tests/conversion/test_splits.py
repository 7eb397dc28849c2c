"""Folds by patient, and the tables that say who belongs to whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctnet_nnunet.conversion.cases import Case, Image, Listing
from ctnet_nnunet.conversion.patients import assign_patients
from ctnet_nnunet.conversion.splits import make_splits
from ctnet_nnunet.errors import DataError


def case(name: str, patient: str = "", site: str = "") -> Case:
    return Case(name, (Image(Path(f"{name}.nii.gz")),), Image(Path(f"{name}_label.nii.gz")), patient, site)


def listing(*cases: Case) -> Listing:
    return Listing(Path(), ["T1"], list(cases))


VISITS = [case(f"p{p:02d}_v{v}", f"p{p:02d}", "A" if p % 3 else "B") for p in range(15) for v in range(1 + p % 3)]


@pytest.mark.parametrize("by_site", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_no_patient_on_both_sides_and_every_case_validated_once(by_site: bool, seed: int) -> None:
    splits, notes = make_splits(VISITS, 5, seed, by_site)
    assert notes == []
    patient = {c.name: c.patient for c in VISITS}
    for split in splits:
        assert not {patient[n] for n in split["train"]} & {patient[n] for n in split["val"]}
        assert sorted(split["train"] + split["val"]) == sorted(patient)
    assert sorted(n for split in splits for n in split["val"]) == sorted(patient)


def test_every_site_in_every_fold() -> None:
    cases = [case(f"c{n:02d}", site="small" if n < 10 else "large") for n in range(50)]
    splits, _ = make_splits(cases, 5, 0, by_site=True)
    small = {c.name for c in cases if c.site == "small"}
    assert [len(small & set(split["val"])) for split in splits] == [2] * 5
    without, _ = make_splits(cases, 5, 0, by_site=False)
    assert [len(small & set(split["val"])) for split in without] != [2] * 5


def test_repeats_with_its_seed_whatever_the_order() -> None:
    assert make_splits(VISITS, 5, 1, False) == make_splits(VISITS[::-1], 5, 1, False)
    assert make_splits(VISITS, 5, 1, False) != make_splits(VISITS, 5, 2, False)


def test_fewer_patients_than_folds_is_said() -> None:
    splits, notes = make_splits([case("a1", "a"), case("a2", "a"), case("b", "b")], 5, 0, False)
    assert len(splits) == 2
    assert "only folds 0 to 1" in notes[0]


def test_one_patient_gives_no_folds() -> None:
    assert make_splits([case("a1", "a"), case("a2", "a")], 5, 0, False)[0] == []


def test_table_and_pattern(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,site\ns1,anna,north\ns2,anna,north\n")
    unlabelled = Case("u1", (Image(Path("u1.nii.gz")),))
    found = listing(case("s1"), case("s2"), case("s3"), unlabelled)
    assign_patients(found, table, None)
    groups = [(c.name, c.patient, c.site) for c in found.cases]
    assert groups == [("s1", "anna", "north"), ("s2", "anna", "north"), ("u1", "", "")]
    assert "not in the --patients table" in found.refused["s3"]
    found = listing(case("sub-1_ses-2"), case("other"))
    assign_patients(found, None, "(sub-[0-9]+)")
    assert [c.patient for c in found.cases] == ["sub-1"]
    assert "does not match" in found.refused["other"]


def test_unknown_patients_are_said() -> None:
    found = listing(case("s1"), case("s2"))
    assign_patients(found, None, None)
    assert "folds leak" in found.notes[0]
    known = listing(case("s1", "anna"), case("s2", "bert"))
    assign_patients(known, None, None)
    assert known.notes == []


def test_folds_of_a_table_and_a_patient_in_two_of_them(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("case,patient,fold\na,p1,0\nb,p2,1\nc,p3,0\nd,p3,1\n")
    found = listing(*(case(name) for name in "abcd"))
    given = assign_patients(found, table, None)
    assert set(found.refused) == {"c", "d"}
    assert "patient p3 is in the folds 0, 1" in found.refused["c"]
    splits, _ = make_splits(found.cases, 5, 0, False, given)
    assert splits == [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]


@pytest.mark.parametrize(
    ("text", "pattern", "reason"),
    [
        ("case,who\na,b\n", None, "no column patient"),
        ("case,patient,fold\na,b,x\n", None, "fold 'x' is no number"),
        ("case,patient\na,b\na,c\n", None, "listed twice"),
        (None, "sub-[0-9]+", "in brackets"),
        (None, "(", "no regular expression"),
    ],
)
def test_unusable_tables_and_patterns(tmp_path: Path, text: str | None, pattern: str | None, reason: str) -> None:
    table = tmp_path / "patients.csv"
    if text:
        table.write_text(text)
    with pytest.raises(DataError, match=reason):
        assign_patients(listing(case("a")), table if text else None, pattern)
