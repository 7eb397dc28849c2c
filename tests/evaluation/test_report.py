"""The report is one file, whatever names are in it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ctnet_nnunet.evaluation.cases import Evaluation
from ctnet_nnunet.evaluation.gallery import choose_cases, choose_structures
from ctnet_nnunet.evaluation.metrics import Scores, Structure
from ctnet_nnunet.evaluation.pictures import Picture, svg_uri
from ctnet_nnunet.evaluation.plots import loss_figure
from ctnet_nnunet.evaluation.report import CasePictures, Command, FoldResult, Report, duration, render, write_report
from ctnet_nnunet.evaluation.training_history import History

HOSTILE = '"><script>alert(1)</script><img src="http://example.org/x.png">'
GOOD = Scores(0.9, 1.5, 0.4, 0.8, 2.0, 2.1)


class _References(HTMLParser):
    """Collects tags and everything that makes a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def _report(name: str = "case_1", structure: str = "nucleus") -> Report:
    structures = (Structure(structure, (1,)), Structure("other", (2,)))
    table = {name: {structure: GOOD, "other": Scores(0.0, math.nan, math.nan, 0.0, 1.0, 0.0)}}
    history = History(name, (0.5, 0.2, math.nan), (0.6, 0.3, 0.2), (0.1, 0.5, 0.7))
    picture = Picture(svg_uri(loss_figure([history])), structure, name)
    return Report(
        title=name, written="today", introduction=name, facts={name: name}, cases=[CasePictures(name, (picture,))],
        evaluation=Evaluation(structures, table, {name + "2": f"{name}: unreadable"}), curves=[picture],
        folds=[FoldResult(name, 2, 0.81)], environment=[name], versions={name: name}, machine={name: name},
        notes=[name],
        commands=[Command(name, "10:00:00", 65.0, 0), Command(name, "10:02:00", 4.0, None)],
    )  # fmt: skip


def _parsed(text: str) -> _References:
    parser = _References()
    parser.feed(text)
    return parser


def test_nothing_is_fetched() -> None:
    text = render(_report())

    fetched = _parsed(text).fetched
    assert fetched
    assert all(value.startswith("data:image/svg+xml;base64,") for value in fetched)
    assert "@import" not in text
    assert not re.search(r"url\((?!data:)", text)
    assert not {"script", "link", "iframe", "object", "base"} & set(_parsed(text).tags)


def test_hostile_names_stay_text() -> None:
    plain, hostile = (_parsed(render(_report(name, name))) for name in ("a case", HOSTILE))

    assert plain.tags == hostile.tags
    assert all(value.startswith("data:") for value in hostile.fetched)


def test_numbers_and_commands_are_in_it() -> None:
    text = render(_report())

    for expected in ("0.900", "1.50", "1 min 05 s", "interrupted", "unreadable", "case_12", "0.810"):
        assert expected in text


def test_structure_missed_in_one_case_is_counted() -> None:
    row = next(line for line in render(_report()).splitlines() if "</span>other</th>" in line)

    assert row.endswith("<td>1</td></tr>")
    assert "<td>–</td>" in row


def test_no_scored_case_still_gives_a_report() -> None:
    report = _report()
    report.evaluation.table.clear()

    assert "No scan could be scored" in render(report)


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(path, _report())
    before = path.read_bytes()
    broken = _report()
    broken.evaluation.table["case_1"].pop("nucleus")

    with pytest.raises(KeyError):
        write_report(path, broken)

    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (59.2, "59 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7440, "2 h 04 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_choice_among_many_cases_and_structures() -> None:
    structures = tuple(Structure(f"s{i}", (i,)) for i in range(1, 6))
    table = {
        f"c{i:02d}": {s.name: Scores((i + s.labels[0]) / 100, 1, 1, 1, 1, 1) for s in structures} for i in range(40)
    }
    evaluation = Evaluation(structures, table)

    chosen = choose_cases(evaluation)

    assert len(chosen) == 12
    assert {"c00", "c19", "c39"} <= set(chosen)
    assert chosen == sorted(chosen)
    assert [s.name for s in choose_structures(evaluation, "c00")] == ["s1", "s2", "s3"]
