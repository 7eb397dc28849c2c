"""Ranks that tell each other through files: who gives signs of life until when."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ctnet_nnunet import ranks
from ctnet_nnunet.errors import TrainingError
from ctnet_nnunet.trainers import rank_files
from ctnet_nnunet.trainers.rank_files import RankFiles


def of_rank(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RankFiles:
    monkeypatch.setattr(ranks, "rank", lambda: number)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "from_first", lambda value: "attempt")
    return RankFiles(folder)


def test_no_sign_of_life_comes_while_rank_0_removes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_files, "BEAT_SECONDS", 0.01)
    folder = tmp_path / "ranks"
    with of_rank(1, folder, monkeypatch) as second:
        with of_rank(0, folder, monkeypatch) as first:
            second.tell("predicted")
            beats = first.beats
            first.wait_for([1], "predicted")
            written = (folder / "attempt_1.json").read_text()
            time.sleep(0.1)
            assert (folder / "attempt_1.json").read_text() == written
            assert first.beats > beats, "rank 0 is waited for"
        assert not folder.exists()
        second.wait_for([0], "ended")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"could not be made .*repeat it with --val"):
        of_rank(0, tmp_path / "file" / "ranks", monkeypatch).__enter__()
