"""Steps, what of them is needed, how they become jobs; and chains of small commands on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ctnet_nnunet.cluster import slurm
from ctnet_nnunet.cluster.chain import Chain, read_chain, refuse_if_busy
from ctnet_nnunet.cluster.local import run_here
from ctnet_nnunet.cluster.options import SlurmOptions, parse_minutes, parse_parameters
from ctnet_nnunet.cluster.run_step import Place, lock_folder, run_step, step_environment
from ctnet_nnunet.cluster.status import chain_status
from ctnet_nnunet.cluster.step import Kind, Step, needed
from ctnet_nnunet.cluster.submit import dependency, groups_of
from ctnet_nnunet.errors import SetupError
from ctnet_nnunet.folder_lock import folder_lock


def write(file: Path, more: str = "") -> tuple[str, ...]:
    """A command that writes a file."""
    return ("python", "-c", f"{more}\nfrom pathlib import Path; Path({str(file)!r}).write_text('{{}}')")


def step(folder: Path, name: str, kind: Kind, after: tuple[str, ...] = (), more: str = "") -> Step:
    proof = folder / f"{name}.json"
    return Step(name, name.replace("_", " "), kind, write(proof, more), (proof,), after)


def five_steps(folder: Path, more: str = "") -> tuple[Step, ...]:
    return (
        step(folder, "preprocess", "preprocess"),
        step(folder, "pretrain_0", "pretraining", ("preprocess",)),
        step(folder, "pretrain_1", "pretraining", ("preprocess",)),
        step(folder, "fold_0", "training", ("preprocess", "pretrain_0"), more),
        step(folder, "fold_1", "training", ("preprocess", "pretrain_1")),
        step(folder, "ensemble", "ensemble", ("fold_0", "fold_1")),
        step(folder, "report", "report", ("ensemble",)),
    )


def names(steps: list[Step]) -> list[str]:
    return [item.name for item in steps]


def finish(steps: tuple[Step, ...], *finished: str) -> None:
    for item in steps:
        if item.name in finished:
            item.proofs[0].write_text("{}")


def test_only_what_is_missing_and_what_it_reads(tmp_path: Path) -> None:
    steps = five_steps(tmp_path)
    assert names(needed(steps)) == names(list(steps))
    finish(steps, "preprocess", "pretrain_0", "fold_0", "fold_1")
    # fold 1 is trained: nobody needs its pretraining any more.
    assert names(needed(steps)) == ["ensemble", "report"]
    finish(steps, "ensemble", "report")
    assert needed(steps) == []
    steps[4].proofs[0].unlink()
    assert names(needed(steps)) == ["pretrain_1", "fold_1", "ensemble", "report"]
    steps[3].proofs[0].write_text("{")
    assert "fold_0" in names(needed(steps)), "half a JSON shows no end"


def test_a_newer_source_makes_a_figure_due_again(tmp_path: Path) -> None:
    source = tmp_path / "summary.json"
    source.write_text("{}")
    made = Step("ensemble", "ensemble", "ensemble", (), (tmp_path / "made.json",), made_from=(source,))
    made.proofs[0].write_text("{}")
    assert made.finished
    os.utime(source, (time.time() + 5,) * 2)
    assert not made.finished


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "pretrained.pth"
    training = Step(
        "fold_0", "fold 0", "training", ("train",), (tmp_path / "x.json",), folder=tmp_path, weights=weights
    )
    assert training.command() == ("train", "-pretrained_weights", str(weights)) and training.progress() == 0
    (tmp_path / "checkpoint_latest.pth").touch()
    assert training.command() == ("train", "--c") and training.progress() > 0


def test_groups_and_their_dependencies(tmp_path: Path) -> None:
    steps = five_steps(tmp_path)
    numbers = {"preprocess": "1", "pretrain": "2", "folds": "3", "more_folds": "4", "ensemble": "5"}
    groups = {group.name: group for group in groups_of(steps)}
    assert {name: dependency(group, numbers) for name, group in groups.items()} == {
        "preprocess": "",
        "pretrain": "afterok:1",
        "folds": "aftercorr:2",
        "ensemble": "afterok:3",
        "report": "afterok:5",
    }
    assert names(list(groups["pretrain"].steps)) == ["pretrain_0", "pretrain_1"]
    assert names(list(groups["folds"].steps)) == ["fold_0", "fold_1"]

    finish(steps, "preprocess", "pretrain_0")
    groups = {group.name: group for group in groups_of(needed(steps))}
    assert names(list(groups["folds"].steps)) == ["fold_1"] and names(list(groups["more_folds"].steps)) == ["fold_0"]
    numbers = {"pretrain": "2", "folds": "3", "more_folds": "4", "ensemble": "5"}
    assert dependency(groups["folds"], numbers) == "afterok:2", "one task behind one job"
    assert dependency(groups["more_folds"], numbers) == ""
    assert dependency(groups["ensemble"], numbers) == "afterok:3,afterok:4"


def test_a_failing_step_stops_what_reads_it_and_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []
    begun = tmp_path / "begun"
    more = f"from pathlib import Path\nif not Path({str(begun)!r}).exists(): raise ValueError('no luck')"
    chain = Chain(tmp_path / "chain", "small", five_steps(tmp_path, more))
    failures = run_here(chain, lambda: None, said.append)
    assert failures.keys() == {"fold 0", "ensemble", "report"}
    assert failures["fold 0"].startswith("ValueError: no luck (whole output: ")
    assert failures["ensemble"] == "not run, because fold 0 failed"
    assert read_chain(chain.folder) == chain
    rows = {row.title: row for row in chain_status(chain.folder).rows}
    assert (rows["fold 0"].state, rows["fold 0"].note) == ("failed", "ValueError: no luck")
    assert rows["fold 1"].state == "finished" and rows["report"].state == "not started"

    begun.touch()
    before = (tmp_path / "fold_1.json").stat().st_mtime_ns
    said.clear()
    assert run_here(chain, lambda: None, said.append) == {}
    assert [line.split("\n")[0] for line in said if line.startswith("[")] == [
        "[1/3] fold 0",
        "[2/3] ensemble",
        "[3/3] report",
    ]
    assert (tmp_path / "fold_1.json").stat().st_mtime_ns == before
    assert not chain_status(chain.folder).at_work


INTERRUPTED = """
import sys
from pathlib import Path
from ctnet_nnunet.cluster.chain import Chain
from ctnet_nnunet.cluster.local import run_here
from tests.cluster.test_chain import five_steps
folder = Path(sys.argv[1])
more = f'''
import signal, sys, time
from pathlib import Path
place = Path({str(folder)!r})
if not (place / "checkpoint").exists():
    def stop(number, frame):
        (place / "checkpoint").write_text("written")
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (place / "sleeping").touch()
    time.sleep(60)
'''
run_here(Chain(folder / "chain", "small", five_steps(folder, more)), lambda: None, print)
"""


def test_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if (tmp_path / "sleeping").exists():
            break
        time.sleep(0.05)
    status = chain_status(tmp_path / "chain")
    assert status.at_work and [row.title for row in status.rows if row.state == "running"] == ["fold 0"]
    chain = read_chain(tmp_path / "chain")
    with pytest.raises(SetupError, match="still works there; wait, or end it"):
        run_here(chain, lambda: None, print)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert (tmp_path / "checkpoint").read_text() == "written", "the command had time to write its checkpoint"
    row = next(row for row in chain_status(tmp_path / "chain").rows if row.title == "fold 0")
    assert (row.state, row.note) == ("interrupted", "interrupted")
    assert run_here(chain, lambda: None, lambda text: None) == {}


def test_a_step_that_outlived_its_chain_keeps_others_out(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain", "small", five_steps(tmp_path))
    with folder_lock(chain.folder / "locks" / "fold_1"), pytest.raises(SetupError, match="fold 1 still runs there"):
        run_here(chain, lambda: None, print)


def test_two_chains_do_not_fill_one_folder(tmp_path: Path) -> None:
    """Preprocessed cases and pretrainings are shared by models, whose chains have folders of their own."""
    made = tmp_path / "preprocessed" / "cases"
    shared = replace(step(tmp_path, "preprocess", "preprocess"), output=made)
    fold = step(tmp_path, "fold_0", "training", ("preprocess",))
    chain = Chain(tmp_path / "one" / "crossval", "small", (shared, fold))
    with folder_lock(lock_folder(tmp_path / "two" / "crossval", shared)):
        assert not made.exists(), "preprocessing empties its folder, a lock in it would be lost"
        with pytest.raises(SetupError, match="preprocess still runs there"):
            run_here(chain, lambda: None, print)
        with pytest.raises(SetupError, match="still works there"):
            run_step(shared, Place(chain.folder), lambda: None)
        fold.proofs[0].write_text("{}")
        refuse_if_busy(chain.folder, chain.steps)  # nothing here needs it any more
        fold.proofs[0].unlink()
    assert run_here(chain, lambda: None, lambda text: None) == {}
    assert read_chain(chain.folder).steps[0] == shared


def test_worker_processes_of_a_job_are_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
        monkeypatch.delenv(name, raising=False)
    for processes, workers in ((1, ("16", "15")), (4, ("4", "3")), (32, ("1", "0"))):
        environment = step_environment(processes)
        assert (environment["nnUNet_def_n_proc"], environment["nnUNet_n_proc_DA"]) == workers


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("24:00:00", 1440), ("1-0", 1440), ("2-12:30", 3630), ("0:00:01", 1)],
)
def test_wall_times(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_options_of_sbatch() -> None:
    assert parse_parameters(["partition=gpu", "--mail-type=END", "exclusive"]) == {
        "partition": "gpu", "mail_type": "END", "exclusive": True,
    }  # fmt: skip
    for text, expected in (
        ("time=3", "give --time"), ("=3", "KEY=VALUE"), ("qos=", "KEY=VALUE"), ("array=1", "array"),
        ("nodes=2", "one task on one node"), ("ntasks=2", "one task"), ("ntasks-per-node=2", "one task"),
        ("cpus-per-task=8", "give --cpus-per-job"),
    ):  # fmt: skip
        with pytest.raises(SetupError, match=expected):
            parse_parameters([text])
    for text in ("soon", "0", "1:2:3:4"):
        with pytest.raises(SetupError, match="--time"):
            parse_minutes(text)


def test_no_submitit_and_no_sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = SlurmOptions(10, 0, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "submitit", ModuleType("submitit"))
    with pytest.raises(SetupError, match="no sbatch on PATH; run it on a login node, or use --engine local"):
        slurm.require_slurm(options)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SetupError, match=r"needs submitit: pip install 'ctnet_nnunet\[cluster\]'"):
        slurm.require_slurm(options)


def test_a_chain_s_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(SetupError, match="cannot be read"):
        read_chain(tmp_path)
