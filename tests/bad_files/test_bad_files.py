"""Every file of the corpus, through the real command: one line, status 2, no hang, little memory, nothing written."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.bad_files.generate import DOCUMENT, identifiers, page, run_corpus, write_corpus

SECONDS = 10.0
GROWN_BYTES = 200 * 10**6
"""More than the program holds anyway (0.9 GB with torch and nnU-Net)."""
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("bad_files")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name")  # the corpus means it
        write_corpus(folder)
    return run_corpus(folder)


def test_the_good_scan_and_model_are_good(results: Results) -> None:
    fine = results["fine"]
    assert fine["status"] == 0, fine["err"]
    assert any(path.endswith("scan.nii.gz") for path, _ in fine["changed"])


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len(identifiers()) == len(set(identifiers())) >= 60


@pytest.mark.parametrize("name", identifiers())
def test_refused(results: Results, name: str) -> None:
    result = results[name]
    assert result["status"] == 2, result["err"] or result["out"]
    assert result["err"].startswith("ctnet: error: "), result["err"]
    assert result["err"].count("\n") == 1, result["err"]
    assert "Traceback" not in result["out"] + result["err"]
    assert result["seconds"] < SECONDS
    assert result["grown"] < GROWN_BYTES
    assert result["changed"] == []


def test_the_page_says_what_the_commands_say(results: Results) -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == page(results), (
        "write it anew: python -m tests.bad_files.generate --docs"
    )
