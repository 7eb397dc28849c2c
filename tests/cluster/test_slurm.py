"""Jobs on a real SLURM of one node: a chain with a wall time's requeue, a cancelled job, a full disk, dealt-out scans.

Trainings are tiny; what takes time is SLURM's own minute. The chain of :func:`long_chain` runs beside the other tests,
which therefore stand in their order.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from ctnet_nnunet.cluster.queue import job_states
from ctnet_nnunet.shim_path import VARIABLE, with_shim
from tests.cluster.start_slurm import missing_programs, slurm
from tests.conftest import NnunetEnv
from tests.end_to_end.commands import BIN, Finished, environment
from tests.end_to_end.tiny import Tiny, prepare

ABSENT = missing_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"no SLURM here ({', '.join(ABSENT)}): apt-get install slurm-wlm munge"),
]
TRAINERS = Path(__file__).parent / "ext_trainers"
SLOW, PRETRAINER = "nnUNetTrainerSlow", "nnUNetTrainerVolF"
SECONDS = 420


@dataclass(frozen=True)
class Cluster:
    """The SLURM, and the dataset on it."""

    tiny: Tiny
    variables: dict[str, str]

    @property
    def environ(self) -> dict[str, str]:
        mine = {VARIABLE: with_shim(str(TRAINERS)), "nnUNet_def_n_proc": "1", "COLUMNS": "200", **self.variables}
        return environment(self.tiny.env, **mine)

    def run(self, *words: str | Path | int, first: str = "", **extra: str) -> Finished:
        """A command as a user types it; ``first`` is run by a shell before it, as ``ulimit``."""
        command = [str(BIN / str(words[0])), *map(str, words[1:])]
        if first:
            command = ["bash", "-c", f'{first}; exec "$@"', "bash", *command]
        done = subprocess.run(command, env={**self.environ, **extra}, capture_output=True, text=True, timeout=SECONDS)
        return Finished(" ".join(map(str, words)), done.returncode, done.stdout, done.stderr)

    def slurm(self, *words: str) -> str:
        """One of SLURM's own commands."""
        return subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=60).stdout

    def crossval(self, trainer: str, *more: str | int) -> tuple[str | int, ...]:
        words = ("ctnet", "crossval", self.tiny.id, self.tiny.configuration, "-tr", trainer, "-p", self.tiny.plans)
        return (*words, "-device", "cpu", "--cpus-per-job", 1, *more)

    def chain(self, trainer: str) -> Path:
        return self.tiny.fold(0, trainer).parent / "crossval"


@pytest.fixture(scope="module")
def cluster(nnunet_env: NnunetEnv, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    tiny = prepare(nnunet_env, 790, "Slurm", unlabelled=0, more=("iterations=20", "pretrain.iterations=2"))
    patch = pytest.MonkeyPatch()
    with slurm(tmp_path_factory.mktemp("slurm") / "run", cpus=6) as variables:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield Cluster(tiny, variables)
    patch.undo()


@pytest.fixture(scope="module")
def long_chain(cluster: Cluster) -> Finished:
    """Submitted first; the last test looks at its end."""
    more = ("--pretrain", PRETRAINER, "--folds", 0, 1, "--engine", "slurm", "--time", "20", "--warning", 60)
    return cluster.run(*cluster.crossval(SLOW, *more)).succeeded()


def jobs_of(cluster: Cluster, trainer: str) -> dict[str, str]:
    jobs: dict[str, str] = json.loads((cluster.chain(trainer) / "chain.json").read_text())["jobs"]
    return jobs


def wait_for(what: str, condition: Callable[[], Any]) -> None:
    for _ in range(SECONDS * 2):
        if condition():
            return
        time.sleep(0.5)
    raise AssertionError(f"waited {SECONDS} s for {what}")


def table(status: Finished, trainer: str) -> dict[str, str]:
    """The rows of a trainer's chain: step → line."""
    lines = iter(status.stdout.splitlines())
    next(line for line in lines if line.startswith("Dataset") and f" {trainer}__" in line)
    rows = itertools.takewhile(lambda line: not line.startswith("Dataset"), lines)
    return {line.split("  ")[0]: line for line in rows}


def refused(finished: Finished, *expected: str) -> None:
    assert finished.status == 2, finished.stdout + finished.stderr
    (line,) = finished.error_lines
    assert all(words in line for words in expected), line
    assert "Traceback" not in finished.stderr


def test_what_is_refused_before_anything_is_submitted(cluster: Cluster, long_chain: Finished, tmp_path: Path) -> None:
    asked = ("--folds", 0, "--engine", "slurm")
    again = ("--pretrain", PRETRAINER, *asked)  # its fold may have begun from the pretraining, and then wants it named
    refused(cluster.run(*cluster.crossval(SLOW, *again)), "earlier start still wait or run", "scancel")
    wrong = ("--slurm", "partition=nowhere")
    refused(cluster.run(*cluster.crossval("nnUNetTrainerCTNet", *asked, *wrong)), "partition=nowhere", "debug, urgent")
    refused(cluster.run(*cluster.crossval("nnUNetTrainerCTNet", *asked), PATH=str(tmp_path)), "no sbatch on PATH")
    refused(cluster.run(*cluster.crossval("nnUNetTrainerCTNet", *asked, "--time", "9-0")), "SLURM refuses")
    assert not cluster.chain("nnUNetTrainerCTNet").exists()


def test_a_wall_time_ends_in_the_middle_of_a_training(cluster: Cluster, long_chain: Finished) -> None:
    jobs, fold = jobs_of(cluster, SLOW), cluster.tiny.fold(0, SLOW)
    assert re.search(r"folds: job \d+_0, \d+_1, behind pretrain \(\d+\), each behind its own", long_chain.stdout)
    wait_for("the first checkpoint", (fold / "checkpoint_latest.pth").is_file)
    minutes = elapsed_minutes(cluster, jobs["fold_0"])
    cluster.slurm("scontrol", "update", f"JobId={jobs['fold_0']}", f"TimeLimit={minutes + 3}")
    wait_for("the requeue", lambda: restarts(cluster, jobs["fold_0"]) == 1)
    cluster.slurm("scontrol", "update", f"JobId={jobs['fold_0']}", "TimeLimit=20")
    stopped = torch.load(fold / "checkpoint_latest.pth", weights_only=True)
    assert stopped["ctnet"]["epoch_outputs"], "it stopped between two epochs"


def test_a_cancelled_job_and_a_full_disk(cluster: Cluster) -> None:
    trainer = "nnUNetTrainerCTNet"
    held = ("--folds", 0, 1, "--engine", "slurm", "--slurm", "hold")
    # Jobs get the limits of the shell that submits them: no file of more than 60 kB stands for a full disk.
    cluster.run(*cluster.crossval(trainer, *held), first="ulimit -f 60").succeeded()
    jobs = jobs_of(cluster, trainer)
    cluster.slurm("scancel", jobs["fold_1"])
    for job in (jobs["fold_0"], jobs["ensemble"], jobs["report"]):
        cluster.slurm("scontrol", "release", job)
    wait_for("the chain's end", lambda: not any(state.alive for state in job_states(jobs.values()).values()))

    status = cluster.run("ctnet", "status", cluster.tiny.id)
    assert status.status == 1
    rows = table(status, trainer)
    assert "could not be written" in rows["fold 0"] and "free disk space" in rows["fold 0"], status.stdout
    assert "failed" in rows["fold 1"] and "cancelled" in rows["fold 1"], status.stdout
    assert "not run, because a step before it failed" in rows["report"], status.stdout
    assert not (cluster.tiny.fold(0) / "checkpoint_latest.pth").exists()


def test_scans_dealt_out_to_jobs_are_those_of_one_process(cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    scans, one, many = tmp_path / "scans", tmp_path / "one", tmp_path / "many"
    scans.mkdir()
    for number, file in enumerate(sorted((cluster.tiny.raw / "imagesTr").iterdir())[:3]):
        (scans / f"scan.{number}.nii.gz").symlink_to(file)
    (scans / "bad.nii.gz").write_bytes(b"no image")
    words = ("ctnet", "predict", "-i", scans, "-m", model_folder, "--speed", "best", "--engine")
    assert cluster.run(*words, "torch", "-o", one, "--report").status == 1
    jobs = ("slurm:torch", "-o", many, "--report", "--jobs", "2", "--cpus-per-job", "1")

    log = (tmp_path / "log.txt").open("w")
    held = [str(word) for word in (BIN / "ctnet", *words[1:], *jobs, "--slurm", "hold")]
    process = subprocess.Popen(held, env=cluster.environ, stdout=log, stderr=log)
    submitted = many / ".shards" / "jobs.json"
    wait_for("the jobs", submitted.is_file)
    first, second = json.loads(submitted.read_text())["jobs"]
    refused(cluster.run(*words, *jobs), "still works there")
    cluster.slurm("scancel", second)
    cluster.slurm("scontrol", "release", first)
    assert process.wait(SECONDS) == 1
    text = (tmp_path / "log.txt").read_text()
    # bad, scan.0, scan.1, scan.2 in turn: the second job had scan.0 and scan.2.
    assert re.search(r"failed: scan\.0: its job \d+_1 never started: cancelled", text), text
    assert "failed: bad:" in text and "failed: scan.1" not in text, text
    kept = (many / "scan.1.nii.gz").stat().st_mtime_ns

    again = cluster.run(*words, *jobs)
    assert again.status == 1 and "3 scans in 2 jobs" in again.stdout, again.stdout + again.stderr
    assert "failed: bad:" in again.stderr and "failed: scan" not in again.stderr
    assert (many / "scan.1.nii.gz").stat().st_mtime_ns == kept, "a finished scan was predicted again"
    check_same(one, many)


def check_same(one: Path, many: Path) -> None:
    """Labels, tables, record and pages of the two folders."""
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in many.iterdir() if not path.name.startswith(".")) == names
    for name in (name for name in names if name.endswith(".nii.gz")):
        first, second = (sitk.ReadImage(str(folder / name)) for folder in (one, many))
        assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
        assert first.GetDirection() == second.GetDirection()
    rows = [sorted(map(tuple, csv.reader((folder / "volumes.csv").open()))) for folder in (one, many)]
    assert rows[0] == rows[1]
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, many)]
    assert list(records[0]["cases"]) == list(records[1]["cases"])
    assert set(records[0]["failures"]) == set(records[1]["failures"]) == {"bad"}
    for case, entry in records[0]["cases"].items():
        other = records[1]["cases"][case]
        assert {**entry, "seconds": 0} == {**other, "seconds": 0}
    assert records[0]["model"] == records[1]["model"]
    pages = [(folder / "report.html").read_text() for folder in (one, many)]
    assert re.findall(r"<td>.*?</td>", pages[0]) == re.findall(r"<td>.*?</td>", pages[1])


def test_the_training_went_on_and_the_chain_ended(cluster: Cluster, long_chain: Finished) -> None:
    jobs, fold = jobs_of(cluster, SLOW), cluster.tiny.fold(0, SLOW)
    wait_for("the chain's end", lambda: not any(state.alive for state in job_states(jobs.values()).values()))

    rows = table(cluster.run("ctnet", "status", cluster.tiny.dataset), SLOW)
    finished = [title for title, line in rows.items() if "finished" in line]
    assert len(finished) == len(jobs) + 1, rows  # preprocessing was finished before
    record = json.loads((cluster.chain(SLOW) / "records" / "fold_0.json").read_text())
    assert record["starts"] == 2 and record["command"].endswith("--c") and record["reason"] == ""
    log = (cluster.chain(SLOW) / "logs" / "fold_0.txt").read_text()
    starts = Counter(re.findall(r"Epoch (\d+)", log))
    assert sorted(starts.values()) == [*[1] * (len(starts) - 1), 2], "one epoch was gone on with"
    for fold_number in (0, 1):
        assert (
            "(0 unlabelled, 4 images of fold"
            in (cluster.chain(SLOW) / "logs" / f"pretrain_{fold_number}.txt").read_text()
        ), "a fold's pretraining saw its validation case"
    summary = json.loads(next(fold.parent.glob("crossval_results_folds_0_1/summary.json")).read_text())
    assert len(summary["metric_per_case"]) == 2
    again = cluster.run(*cluster.crossval(SLOW, "--pretrain", PRETRAINER, "--folds", 0, 1)).succeeded()
    assert "everything is finished" in again.stdout and "all validation cases: Dice" in again.stdout


def elapsed_minutes(cluster: Cluster, job: str) -> int:
    shown = cluster.slurm("scontrol", "show", "job", job)
    hours, minutes, _ = re.search(r"RunTime=(\d+):(\d+):(\d+)", shown).groups()  # type: ignore[union-attr]
    return int(hours) * 60 + int(minutes)


def restarts(cluster: Cluster, job: str) -> int:
    return int(re.search(r"Restarts=(\d+)", cluster.slurm("scontrol", "show", "job", job)).group(1))  # type: ignore[union-attr]
