"""What several processes refuse: at the start, in one line that names rank and machine, with exit status 2."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import socket
from pathlib import Path

import pytest
import torch

from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.train import agreement
from ctnet_nnunet.train.agreement import Facts, check_agreement, difference
from ctnet_nnunet.train.arguments import parse_arguments
from ctnet_nnunet.train.group import Launch, process_group
from tests.conftest import FOLDERS
from tests.end_to_end.commands import Finished
from tests.end_to_end.distributed.launch import run_ranks
from tests.end_to_end.tiny import TRAINER, Tiny

HOST = socket.gethostname()


def words(tiny: Tiny, trainer: str = TRAINER, *more: str) -> list[str]:
    return [str(word) for word in tiny.train(0, trainer, *more)][1:]


def line_of(finished: list[Finished], status: int = 2) -> str:
    """The one line that all ranks together have said; whoever said it ended with the status."""
    lines = [(rank.status, line) for rank in finished for line in rank.error_lines if "error:" in line]
    assert len(lines) == 1, [rank.stdout + rank.stderr for rank in finished]
    assert lines[0][0] == status
    assert not any("Traceback" in rank.stderr for rank in finished), [rank.stderr for rank in finished]
    return lines[0][1]


@pytest.mark.parametrize("trainer", [TRAINER, "nnUNetTrainer"])
def test_more_processes_than_samples(copy_of_planned: Tiny, trainer: str) -> None:
    tiny = copy_of_planned
    line = line_of(run_ranks(tiny.env, *words(tiny, trainer), world=3))
    assert "3d_fullres: the plan's batch of 2 is smaller than the 3 processes" in line
    assert "start 2 of them, or give --batch-per-rank" in line
    assert not list(tiny.env.results.rglob("*.pth"))


def impatient(rank: int) -> None:
    agreement.SHARED_SECONDS = 0.5


def test_other_data_and_other_results(copy_of_planned: Tiny, tmp_path: Path) -> None:
    tiny = copy_of_planned
    for name in FOLDERS[1:]:
        shutil.copytree(tiny.env.root / name, tmp_path / "other" / name)
    other = {name: str(tmp_path / "other" / name) for name in FOLDERS[1:]}

    def refused(*variables: str) -> str:
        by_rank = {1: {name: other[name] for name in variables}}
        line = line_of(run_ranks(tiny.env, *words(tiny), by_rank=by_rank, before=impatient))
        assert f"rank 1 on {HOST}" in line and f"rank 0 on {HOST}" in line
        assert not list(tiny.env.results.rglob("*"))
        return line

    assert "does not see what" in refused("nnUNet_results")
    case = next((tmp_path / "other").rglob("tr_*.b2nd"))
    case.unlink()
    line = refused("nnUNet_preprocessed")
    assert f"in {tiny.dataset}/nnUNetPlans_3d_fullres, {case.name} is there on one of them only (1 such files)" in line


def facts() -> Facts:
    versions = {"torch": "2.11.0", "nnunetv2": "2.8.1"}
    return Facts("node-a", versions, {"/p/plans.json": "12", "/p/splits.json": None}, {"/p/c": {"x.b2nd": 5}}, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"versions": {"torch": "2.10.0", "nnunetv2": "2.8.1"}},
            "rank 1 on node-b has torch 2.10.0, rank 0 on node-a has",
        ),
        ({"files": {"/p/plans.json": "13", "/p/splits.json": None}}, "see different data: /p/plans.json differs"),
        ({"files": {"/p/plans.json": "12", "/p/splits.json": "3"}}, "/p/splits.json is there on one of them only"),
        ({"cases": {"/p/c": {"x.b2nd": 6}}}, "in /p/c, x.b2nd differs in size (1 such files)"),
        ({"cases": {"/p/c": {"x.b2nd": 5, "y.b2nd": 5}}}, "in /p/c, y.b2nd is there on one of them only"),
        ({"cases": {"/p/c": None}}, "/p/c is there on one of them only"),
        ({"shared": False}, "does not see what rank 0 on node-a writes to nnUNet_results"),
    ],
)
def test_every_difference_is_named(changes: dict[str, object], said: str) -> None:
    error = difference(
        facts(), dataclasses.replace(facts(), host="node-b", **changes), "rank 1 on node-b", "rank 0 on node-a"
    )
    assert error is not None
    assert said in str(error) and "rank 1 on node-b" in str(error)
    assert "\n" not in str(error)
    assert difference(facts(), facts(), "rank 1", "rank 0") is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--c", "--val"], "--c and --val exclude each other"),
        (["--c", "-pretrained_weights", "x"], "--c and -pretrained_weights exclude each other"),
        (["--val_best", "--disable_checkpointing"], "--val_best and --disable_checkpointing exclude each other"),
        (["--batch-per-rank", "0"], "'0' is not a whole number, 1 or more"),
        (["-device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_arguments_that_make_no_sense(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            parse_arguments(["501", "3d_fullres", "0", *more])
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert len(printed.splitlines()) == lines
        assert (said in printed) == bool(lines)


def test_one_process_alone_is_refused_like_a_user_expects(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    for command, said in (
        (words(tiny, "nnUNetTrainerNone"), "-tr nnUNetTrainerNone: no such trainer; ours are nnUNetTrainerCMFF"),
        (words(tiny, TRAINER, "--c"), "holds no checkpoint to continue from"),
        (words(tiny, "nnUNetTrainer", "--c"), "holds no checkpoint to continue from"),
        (words(tiny, TRAINER, "--val"), "--val: "),
        (words(tiny, TRAINER, "-p", "NoPlans"), "NoPlans.json: cannot be read; plan and preprocess dataset"),
        (["999", *words(tiny)[1:]], "dataset 999: neither number nor name of a dataset"),
    ):
        assert said in line_of(run_ranks(tiny.env, *command, world=1))


def test_results_that_rank_0_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"file.*: Not a directory; free disk space or fix the rights"):
        check_agreement([], [], tmp_path / "file" / "results")


def test_a_gpu_that_is_not_there_is_said_of_one_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with (
        pytest.raises(SetupError, match="-device cuda: torch sees no GPU there; run with -device cpu"),
        process_group(Launch(), torch.device("cuda")),
    ):
        pass


def full_for_first(rank: int) -> None:
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


@pytest.mark.skipif(os.name == "nt", reason="a limit on file sizes stands in for the full disk")
def test_a_full_disk_where_rank_0_writes(copy_of_planned: Tiny) -> None:
    tiny = copy_of_planned
    block = json.loads(tiny.plans_file.read_text())["configurations"]["3d_fullres"]["ctnet"]
    tiny.change_configuration(ctnet={**block, "save_minutes": 1e-6})
    line = line_of(run_ranks(tiny.env, *words(tiny), before=full_for_first, patience=3))
    assert "checkpoint_latest.pth: could not be written" in line and "free disk space" in line
    assert not list(tiny.fold(0).glob("*checkpoint*"))
