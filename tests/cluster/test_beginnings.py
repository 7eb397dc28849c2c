"""A fold that began from something else than what is asked for now is not taken for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ctnet_nnunet.cluster.beginnings import check_beginnings, note_beginning
from ctnet_nnunet.cluster.chain import Chain
from ctnet_nnunet.cluster.local import run_here
from ctnet_nnunet.cluster.step import Step
from ctnet_nnunet.errors import SetupError


def fold(tmp_path: Path, weights: Path | None) -> Step:
    folder = tmp_path / "fold_0"
    script = f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(); (p / 'checkpoint_latest.pth').touch()"
    proof = folder / "summary.json"
    return Step("fold_0", "fold 0", "training", ("python", "-c", script), (proof,), folder=folder, weights=weights)


def test_another_pretraining_is_refused_and_a_new_start_is_not(tmp_path: Path) -> None:
    pretrained = tmp_path / "P__plans__3d" / "fold_0" / "checkpoint_final.pth"
    scratch, fine_tuned, chain = fold(tmp_path, None), fold(tmp_path, pretrained), tmp_path / "model" / "crossval"
    assert check_beginnings(chain, [fine_tuned]) == []
    run_here(Chain(chain, "small", (scratch,)), lambda: None, lambda text: None)  # leaves a checkpoint, and is cut off
    assert check_beginnings(chain, [scratch]) == []
    with pytest.raises(SetupError, match=r"began without a pretraining, and now it is to begin from .*P__plans__3d"):
        check_beginnings(chain, [fine_tuned])
    scratch.proofs[0].write_text("{}")
    (tmp_path / "fold_0" / "checkpoint_latest.pth").unlink()
    with pytest.raises(SetupError, match=r"other plans \(ctnet plan --name, -p\) or another nnUNet_results"):
        check_beginnings(chain, [fine_tuned])

    shutil.rmtree(tmp_path / "fold_0")
    assert check_beginnings(chain, [fine_tuned]) == []
    note_beginning(chain, fine_tuned)
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / "checkpoint_best.pth").touch()
    note_beginning(chain, scratch)  # one that goes on changes nothing
    assert check_beginnings(chain, [fine_tuned]) == []
    with pytest.raises(SetupError, match="now it is to begin without a pretraining"):
        check_beginnings(chain, [scratch])


def test_a_fold_that_was_trained_by_hand_is_named(tmp_path: Path) -> None:
    step = fold(tmp_path, None)
    (tmp_path / "fold_0").mkdir()
    step.proofs[0].write_text("{}")
    assert check_beginnings(tmp_path / "crossval", [step]) == ["fold 0"]
