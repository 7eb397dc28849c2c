"""Pool, test cases and draws: nothing that is tested on may be learned from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ctnet_nnunet.errors import DataError, SetupError
from ctnet_nnunet.low_label.cases import (
    draw_cases,
    read_case_list,
    refuse_shared_patients,
    refuse_studies,
    refuse_unlabelled_contents,
    refuse_unlabelled_names,
    split_cases,
)
from ctnet_nnunet.low_label.checks import refuse_leaks
from ctnet_nnunet.planes.geometry import planes_of_grid
from ctnet_nnunet.planes.sidecar import Sidecar, SlicePlane, Stack, Study, write_sidecar

KNOWN = [f"case_{number:02d}" for number in range(20)]


@pytest.mark.parametrize("seed", range(20))
def test_pool_and_test_cases_share_nothing_and_are_all(seed: int) -> None:
    left_out = KNOWN[:3]
    pool, test = split_cases(KNOWN, None, left_out, None, seed)
    assert set(pool).isdisjoint(test)
    assert sorted([*pool, *test, *left_out]) == KNOWN
    assert len(test) == 3  # a fifth of 17


def test_named_test_cases_leave_the_rest_as_the_pool() -> None:
    pool, test = split_cases(KNOWN, ["case_07", "case_03"], [], None, 0)
    assert test == ["case_03", "case_07"]
    assert pool == [case for case in KNOWN if case not in test]


def test_a_named_pool_is_never_drawn_from_for_testing() -> None:
    for seed in range(20):
        pool, test = split_cases(KNOWN, None, [], KNOWN[:15], seed)
        assert pool == KNOWN[:15]
        assert set(test) <= set(KNOWN[15:])


@pytest.mark.parametrize(
    ("test", "left_out", "pool", "words"),
    [
        (["case_01"], [], ["case_01", "case_02"], ["case_01", "in the pool", "--pool-cases"]),
        (["case_01"], ["case_01"], None, ["case_01", "--leave-out"]),
        (KNOWN, [], None, ["pool of 0"]),
    ],
)
def test_overlaps_are_refused(test: list[str], left_out: list[str], pool: list[str] | None, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        split_cases(KNOWN, test, left_out, pool, 0)
    assert all(word in str(caught.value) for word in words)


def test_draws_differ_and_do_not_depend_on_how_many_are_asked() -> None:
    three, five = draw_cases(KNOWN, [1, 5], 3, 7), draw_cases(KNOWN, [5, 1], 5, 7)
    assert len({draw.cases for draw in five}) == 10
    assert set(three) <= set(five)
    assert all(len(draw.cases) == draw.labels for draw in five)
    assert {draw.cases for draw in draw_cases(KNOWN, [1], 3, 8)} != {draw.cases for draw in three if draw.labels == 1}


def test_all_single_cases_can_be_drawn() -> None:
    assert {draw.cases for draw in draw_cases(KNOWN, [1], 20, 0)} == {(case,) for case in KNOWN}


@pytest.mark.parametrize(
    ("labels", "draws", "words"), [(21, 1, "the pool has 20"), (20, 2, "1 different draws"), (1, 21, "20 different")]
)
def test_more_than_there_is_gets_refused(labels: int, draws: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        draw_cases(KNOWN, [labels], draws, 0)


def test_case_lists(tmp_path: Path) -> None:
    file = tmp_path / "cases.txt"
    file.write_text("# the four\ncase_03\n\n case_01 \ncase_03\n")
    assert read_case_list(file, "--test-cases", KNOWN) == ["case_03", "case_01"]
    file.write_text("case_03\ncase_99\n")
    with pytest.raises(DataError, match="case_99"):
        read_case_list(file, "--test-cases", KNOWN)
    file.write_text("# nothing\n")
    with pytest.raises(SetupError, match="names no case"):
        read_case_list(file, "--test-cases", KNOWN)
    file.write_bytes(b"\xff\xfe\x00case")
    with pytest.raises(SetupError, match="cannot be read"):
        read_case_list(file, "--test-cases", KNOWN)
    with pytest.raises(SetupError, match="cannot be read"):
        read_case_list(tmp_path / "none.txt", "--test-cases", KNOWN)


def test_a_bom_before_the_first_case_is_not_its_name(tmp_path: Path) -> None:
    file = tmp_path / "test.txt"
    file.write_bytes(b"\xef\xbb\xbfcase_01\r\ncase_02\r\n")
    assert read_case_list(file, "--test-cases", KNOWN) == ["case_01", "case_02"]


def test_a_test_case_among_the_unlabelled_scans_is_found_by_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    scans = [tmp_path / name for name in ("other", "renamed")]
    scans[0].write_bytes(b"c" * 100)
    scans[1].write_bytes(b"b" * 100)
    hidden = {tmp_path / "a": "case_a"}
    refuse_unlabelled_contents(scans, hidden, "test case")  # a case of the pool may be there
    scans[1].write_bytes(b"a" * 100)
    with pytest.raises(DataError, match=r"renamed: is test case case_a under another name; remove it from imagesUn"):
        refuse_unlabelled_contents(scans, hidden, "test case")


def test_a_test_case_among_the_unlabelled_scans_is_found_by_its_name_or_its_patient_s() -> None:
    refuse_unlabelled_names(["p2_es", "p1_other", "unlike"], ["p1_es"], None, "test case")
    with pytest.raises(DataError, match="p1_es is a test case"):
        refuse_unlabelled_names(["p2_es", "p1_es"], ["p1_es"], None, "test case")
    refuse_unlabelled_names(["p2_es", "unlike"], ["p1_es"], PATTERN, "test case")
    with pytest.raises(DataError, match="p1_other is of the patient of test case p1_es"):
        refuse_unlabelled_names(["p2_es", "p1_other"], ["p1_es"], PATTERN, "test case")


PHASES = [f"p{patient}_{phase}" for patient in range(6) for phase in ("ed", "es")]
PATTERN = r"(p\d+)_"


def test_a_label_is_a_patient_with_all_scans() -> None:
    for draw in draw_cases(PHASES, [1, 3], 4, 1, PATTERN):
        patients = {case.split("_")[0] for case in draw.cases}
        assert len(patients) == draw.labels
        assert draw.cases == tuple(case for case in sorted(PHASES) if case.split("_")[0] in patients)
    with pytest.raises(DataError, match="6 labelled patients"):
        draw_cases(PHASES, [7], 1, 1, PATTERN)


def test_test_patients_are_drawn_whole() -> None:
    pool, test = split_cases(PHASES, None, [], None, 3, PATTERN)
    assert not {case[:2] for case in pool} & {case[:2] for case in test}
    assert len(test) == 2 and sorted(pool + test) == PHASES


def test_a_patient_on_both_sides_and_a_study_of_a_test_case_are_refused() -> None:
    with pytest.raises(DataError, match="p1_es and p1_ed"):
        refuse_shared_patients(["p0_ed", "p1_ed"], ["p1_es"], PATTERN)
    refuse_shared_patients(["p1_ed"], ["p1_es"], None)
    with pytest.raises(DataError, match="study p1_es-r0 is of the test case p1_es"):
        refuse_studies([("p0_ed-r0", "p0_ed"), ("p1_es-r0", "p1_es")], ["p1_es"], None, "test case")
    with pytest.raises(DataError, match="study x is of the left-out case p1_es"):
        refuse_studies([("x", "p1_es")], ["p1_es"], None, "left-out case")


@pytest.mark.parametrize("study", [("p1", ""), ("S7", "p1"), ("p1_ed-r0", ""), ("S7", "p1_ed")])
def test_a_study_of_a_test_case_s_patient_is_refused(study: tuple[str, str]) -> None:
    """Under the patient's name, or that of another case of the patient."""
    others = [("p0", ""), ("S8", "p2_ed"), ("unlike", "any")]
    refuse_studies(others, ["p1_es"], PATTERN, "test case")
    with pytest.raises(DataError, match=f"study {study[0]} is of the test case p1_es, or of its patient"):
        refuse_studies([*others, study], ["p1_es"], r"(p\d+)", "test case")


def test_labelled_cases_that_are_left_out_are_no_leak(tmp_path: Path) -> None:
    """They are in no training; a study with an image of its own is drawn from whatever the folds say."""
    grid = planes_of_grid((6, 5, 2), (1.0, 1.5, 4.0), (3.0, -2.0, 7.0), np.eye(3).ravel())
    planes = tuple(map(SlicePlane.of, grid))

    def study(*cases: str) -> Study:
        return Study(
            frame_of_reference="", group="p1", stacks={"SAX": Stack(cases=cases, shape=(2, 5, 6), planes=planes)}
        )

    (tmp_path / "imagesTr").mkdir()
    for case in PHASES:
        (tmp_path / "imagesTr" / f"{case}_0000.nii.gz").touch()
    target = SimpleNamespace(
        raw=tmp_path,
        folder=tmp_path,
        images_un=tmp_path / "no",
        channels=1,
        file_ending=".nii.gz",
        dataset_json={"file_ending": ".nii.gz"},
    )
    settings = SimpleNamespace(pool=("p0_ed", "p2_ed"), test=("p1_es",), patient_pattern=PATTERN)
    write_sidecar(Sidecar(studies={"p1_ed": study("p1_ed")}), tmp_path / "planes.json")
    refuse_leaks(target, settings, ())
    write_sidecar(Sidecar(studies={"p1_ed": study("p1_ed", "p1_ed__SAX__f01")}), tmp_path / "planes.json")
    with pytest.raises(DataError, match="of its patient"):
        refuse_leaks(target, settings, ())


@pytest.mark.parametrize(("pattern", "words"), [("(", "regular expression"), ("p", "brackets"), ("(q)", "brackets")])
def test_a_pattern_that_finds_no_patient(pattern: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        draw_cases(PHASES, [1], 1, 1, pattern)
