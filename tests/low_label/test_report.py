"""The pages' curves, quarters and boxes hold the figures that they are of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctnet_nnunet.low_label.arms import ARMS, select
from ctnet_nnunet.low_label.cases import Draw
from ctnet_nnunet.low_label.experiment import Experiment
from ctnet_nnunet.low_label.figures import at_quarters, box_figure, colours_of, curve_figure
from ctnet_nnunet.low_label.report import Summaries, html, markdown
from ctnet_nnunet.low_label.scores import Row
from ctnet_nnunet.low_label.trainings import supervised
from tests.low_label.test_comparison import row
from tests.low_label.test_plans import SETTINGS

RISING, FALLING = tuple(np.linspace(0.01, 0.8, 40)), tuple(np.linspace(0.6, 0.2, 40))
CURVES = {("unet", 1): [RISING, FALLING], ("ctnet", 1): [RISING], ("ctnet", 5): [FALLING]}
COLOURS = colours_of(["unet", "ctnet"])


def rows() -> list[Row]:
    random = np.random.RandomState(0)
    return [
        row(arm, draw, case, structure, float(random.uniform(0.3, 0.9)), labels)
        for arm, labels in (("unet", 1), ("ctnet", 1), ("ctnet", 5))
        for draw in (1, 2, 3)
        for case in "uvw"
        for structure in ("left", "right")
    ]


def test_quarters_are_means_over_draws_of_the_tenth_that_ends_there() -> None:
    values = at_quarters(CURVES)[("unet", 1)]
    mean = (np.array(RISING) + np.array(FALLING)) / 2
    assert values == pytest.approx([mean[end - 4 : end].mean() for end in (10, 20, 30, 40)])


def test_a_curve_for_each_arm_with_these_labels_and_a_band_where_draws_differ() -> None:
    (panel,) = curve_figure(CURVES, 1, 1000, COLOURS).axes
    lines = {str(line.get_label()): line for line in panel.get_lines()}
    assert set(lines) == {"unet", "ctnet"} and len(panel.collections) == 1
    steps, dice = lines["ctnet"].get_data()
    assert steps[0] == 25 and steps[-1] == 1000 and len(dice) == 40
    assert dice[-1] == pytest.approx(np.mean(RISING[-4:])) and dice[0] == pytest.approx(RISING[0])
    assert lines["unet"].get_data()[1][-1] == pytest.approx(np.mean([*RISING[-4:], *FALLING[-4:]]))
    assert lines["unet"].get_color() == COLOURS["unet"] != COLOURS["ctnet"]


def test_a_box_for_each_arm_of_the_means_of_its_cases() -> None:
    panels = box_figure(rows(), COLOURS).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["1 label", "5 labels"]
    assert [[text.get_text() for text in panel.get_yticklabels()] for panel in panels] == [["unet", "ctnet"], ["ctnet"]]
    dots = [line for line in panels[0].get_lines() if line.get_marker() == "o"]
    for arm, points in zip(("unet", "ctnet"), dots, strict=True):
        own = [item for item in rows() if (item.arm, item.labels) == (arm, 1)]
        keys = dict.fromkeys((item.draw, item.case) for item in own)
        means = [np.mean([item.dice for item in own if (item.draw, item.case) == key]) for key in keys]
        assert points.get_xdata() == pytest.approx(means)
    assert len(panels[0].patches) == 2


def test_the_pages_show_pictures_quarters_and_headings(tmp_path: Path) -> None:
    summaries = Summaries(Experiment(tmp_path, SETTINGS), rows(), CURVES)
    page, text = html(summaries), markdown(summaries)
    assert len(re.findall(r'<img src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]{1000,}"', page)) == 3
    assert page.count("<caption>Dice on patches as training goes on") == 2
    first, last = at_quarters(CURVES)[("unet", 1)][0], at_quarters(CURVES)[("unet", 1)][-1]
    assert f"<td>{first:.3f}</td>" in page and f"<td>{last:.3f}</td>" in page
    assert re.search(rf"\| unet \| {first:.3f} \| .* \| {last:.3f} \|", text)
    assert "## 1 labelled case\n" in text and "<h2>5 labelled cases</h2>" in page


def test_labels_are_patients_where_a_pattern_finds_them(tmp_path: Path) -> None:
    pool = ("p1_ed", "p1_es", "p2_ed", "p2_es", "p3_ed")
    settings = replace(SETTINGS, pool=pool, patient_pattern=r"(p\d+)_")
    experiment = Experiment(tmp_path, settings, [Draw(1, 1, pool[:2])])
    text = markdown(Summaries(experiment, rows(), CURVES))
    assert "## 1 labelled patient\n" in text and "## 5 labelled patients\n" in text
    assert settings.most_labels == 3 and SETTINGS.most_labels == 3
    assert replace(settings, patient_pattern=None).most_labels == 5
    (ceiling,) = supervised(experiment, select(["ctnet-full"], {}), experiment.draws)
    assert ceiling.title == "ctnet-full, 3 labels"


def test_the_tables_are_of_every_arm_and_draw_in_the_folder(tmp_path: Path) -> None:
    """A later run may name one arm alone."""
    draws = [Draw(1, 1, ("a",)), Draw(1, 2, ("b",)), Draw(2, 1, ("a", "b"))]
    known = ["volf", "new", "full"]  # two of them named like arms
    selection = select(["ctnet"], {"new": "new.pth"}).with_all_others(known)
    assert [arm.name for arm in selection.arms[:2]] == ["ctnet", "ctnet@new"] and selection.arms[1].weights == "new.pth"
    starting = [name for name, arm in ARMS.items() if arm.pretraining is None and not arm.all_labels]
    assert {"unet", "unet-adamw", "ctnet", "unet-twin", "ctnet-reciprocal"} <= set(starting)
    started = {f"{arm}@{name}" for arm in starting for name in known}
    assert {arm.name for arm in selection.arms} == {*ARMS, *started}
    assert len(selection.arms) == len(ARMS) + len(started)
    trainings = supervised(Experiment(tmp_path, SETTINGS, draws), selection, draws)
    assert len(trainings) == 3 * (len(ARMS) - 1 + len(started)) + 1
    assert len({item.name for item in trainings}) == len({item.folder for item in trainings}) == len(trainings)


def test_the_head_says_what_the_arms_began_with(tmp_path: Path) -> None:
    def facts(arm: str) -> dict[str, str]:
        experiment = Experiment(tmp_path, SETTINGS, checkpoints={"mine": "0123456789abcdef0123", "other": "f" * 64})
        return Summaries(experiment, [replace(rows()[0], arm=arm)], CURVES).facts()

    assert not {"Pretraining", "Checkpoints"} & facts("unet").keys()
    assert facts("unet+volf")["Pretraining"].endswith(" iterations")
    assert facts("unet@mine")["Checkpoints"] == "mine: SHA-256 0123456789abcdef…"
