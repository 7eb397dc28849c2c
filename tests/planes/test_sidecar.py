"""planes.json: what is written is read again; what is not right is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctnet_nnunet.errors import DataError
from ctnet_nnunet.planes.geometry import planes_of_grid
from ctnet_nnunet.planes.sidecar import Sidecar, SlicePlane, Stack, Study, case_id, read_sidecar, write_sidecar

GRID = planes_of_grid((6, 5, 4), (1.0, 1.5, 4.0), (3.0, -2.0, 7.0), np.eye(3).ravel())


def stack(*cases: str, slices: int = 4) -> Stack:
    return Stack(cases=cases, shape=(slices, 5, 6), planes=tuple(map(SlicePlane.of, GRID[:slices])))


def sidecar() -> Sidecar:
    first = Study(frame_of_reference="a", stacks={"SAX": stack("p1__SAX__f00", "p1__SAX__f01"), "2CH": stack(slices=1)})
    second = Study(frame_of_reference="b", group="p1", stacks={"SAX": stack("p2__SAX")})
    return Sidecar(guests=("2CH",), studies={"p1": first, "p2": second})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_sidecar(sidecar(), tmp_path / "planes.json")
    read = read_sidecar(tmp_path / "planes.json")
    assert read == sidecar()
    assert read.studies["p1"].stacks["SAX"].stack == GRID
    assert list(read.cases()) == [
        ("p1__SAX__f00", "p1", "SAX"),
        ("p1__SAX__f01", "p1", "SAX"),
        ("p2__SAX", "p2", "SAX"),
    ]
    assert (read.group_of("p1"), read.group_of("p2")) == ("p1", "p1")


def test_the_guest_s_slice() -> None:
    study = Study(frame_of_reference="", stacks={"2CH": stack()})
    assert study.guest("2CH", "middle") == GRID[2]
    assert study.guest("2CH", 0) == GRID[0]
    assert study.guest("2CH", 4) is None
    assert study.guest("4CH", "middle") is None


def test_a_role_that_no_study_has_is_named() -> None:
    with pytest.raises(DataError, match=r"guest '3CH': no study has this role; there are 2CH, SAX"):
        sidecar().require_roles(["2CH", "3CH"], "guest", "planes.json")


def change(path: list[Any], value: Any) -> str:
    content = sidecar().model_dump(mode="json")
    table: Any = content
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    return json.dumps(content)


STACK = ["studies", "p1", "stacks", "SAX"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        (change(["version"], 2), "version"),
        (change(["coordinate_system"], "RAS"), "coordinate_system"),
        (change(["colour"], "red"), "colour"),
        (change(["sigma_mm"], -1), "sigma_mm"),
        (change(["hosts"], []), "hosts"),
        (change([*STACK, "shape"], [5, 5, 6]), "4 planes for the shape"),
        (change([*STACK, "planes", 1, "iop"], [1, 0, 0, 0.5, 1, 0]), "right angle"),
        (change([*STACK, "planes", 1, "iop"], [1, 0, 0, 0, 0, 1]), "not parallel"),
        (change([*STACK, "planes", 1, "ipp"], [1, 0]), "ipp"),
        (change([*STACK, "cases"], ["p2__SAX"]), "p2__SAX is in two stacks"),
    ],
)
def test_what_is_not_right_is_named_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "planes.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_sidecar(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ctnet convert planes"):
        read_sidecar(tmp_path / "planes.json")


def test_case_ids() -> None:
    assert case_id("p1", "SAX") == "p1__SAX"
    assert case_id("p1", "SAX", 3) == "p1__SAX__f03"
    for study, role in (("p__1", "SAX"), ("p1_", "SAX"), ("p1", "S__X")):
        with pytest.raises(DataError, match="reserved"):
            case_id(study, role)
    with pytest.raises(DataError, match="letters, digits"):
        case_id("p1", "S X")
